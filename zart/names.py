"""Names of durable functions, steps and captures: what makes one usable, and templates with parameters in them."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any
from uuid import UUID

from zart.errors import InvalidArgument, RegistrationError, ZartError, shown

# Names are part of index keys; PostgreSQL refuses index rows over about 2,700 bytes.
MAX_NAME_BYTES = 512

FAILURE_PREFIX = "on_failure/"
"""What the names of a failure handler's operations begin with in the journal, and no other's."""

_MISSING = inspect.Parameter.empty
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def checked_name(name: object, what: str, error: type[ZartError] = InvalidArgument) -> str:
    """The name, if it can identify something.

    Args:
        name: must be text, not empty, without NUL, encodable, at most MAX_NAME_BYTES bytes of UTF-8.
        what: whose name it is, for the error's text.
        error: what to raise.

    Returns:
        The name as a plain str: a member of a StrEnum is its value.

    Raises:
        InvalidArgument: or `error`, when the name cannot be used.
    """
    return checked_text(name, f"the name of {what}", MAX_NAME_BYTES, error)


def checked_operation(name: object, what: str, error: type[ZartError] = InvalidArgument) -> str:
    """As `checked_name`, of an operation of a body: it must not begin with what zart puts before a handler's."""
    checked = checked_name(name, what, error)
    if checked.startswith(FAILURE_PREFIX):
        raise error(
            f"the name of {what} must not begin with {FAILURE_PREFIX!r}, got {shown(name)}: zart puts that before the"
            " names in failure handlers by itself"
        )
    return checked


def checked_text(text: object, what: str, most: int, error: type[ZartError] = InvalidArgument) -> str:
    """A text that PostgreSQL can keep in an index: not empty, without NUL, encodable, at most `most` bytes of UTF-8.

    Args:
        what: which text, as "execution_id" or "the name of a step".
        error: what to raise.

    Raises:
        InvalidArgument: or `error`, when it cannot be used.
    """
    if not isinstance(text, str):
        raise error(f"{what} must be text, got {shown(text)}")
    if not text:
        raise error(f"{what} must not be empty")
    if "\0" in text:
        raise error(f"{what} must not hold a NUL character, got {shown(text)}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise error(f"{what} must not hold half of a surrogate pair, got {shown(text)}") from None
    if size > most:
        raise error(f"{what} has {size:,} bytes, at most {most} are allowed, got {shown(text)}")
    return text if type(text) is str else str.__str__(text)


def refuse_bare(name: object, decorator: str) -> None:
    """Raise when a decorator that takes a name was given the function instead.

    Raises:
        RegistrationError: says how to write it.
    """
    if callable(name):
        written = getattr(name, "__name__", "name")
        raise RegistrationError(f'@{decorator} needs a name; write `@{decorator}("{written}")`')


@dataclass(frozen=True, slots=True)
class _Field:
    """A parameter named in a template: where a call's arguments hold it, and its default."""

    parameter: str
    position: int | None
    default: Any


@dataclass(frozen=True, slots=True)
class NameTemplate:
    """A step's name with parameters in it, as in "provision-{region}"."""

    text: str
    pieces: tuple[str | _Field, ...]

    @classmethod
    def read(cls, text: str, function: Callable[..., Any]) -> NameTemplate | None:
        """The template in a declared name, or None when the name is always the same.

        Braces are written `{{` and `}}` when they are part of the name.

        Raises:
            RegistrationError: the text is malformed, or names something else than a parameter of the function.
        """
        pieces: list[str | _Field] = []
        try:
            for literal, field, form, conversion in string.Formatter().parse(text):
                if literal:
                    pieces.append(literal)
                if field is not None:
                    if form or conversion:
                        raise RegistrationError(f"step name {text!r}: {{{field}}} takes no conversion or format")
                    pieces.append(_field(field, text, function))
        except ValueError as error:
            raise RegistrationError(f"step name {text!r} is malformed: {error}; write {{{{ for a brace") from None
        return None if pieces == [text] else cls(text, tuple(pieces))

    def fill(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
        """The name of one call.

        Raises:
            InvalidArgument: a value cannot be part of a name, or the name is too long.
            TypeError: the call lacks an argument that the name needs.
        """
        text = "".join(
            piece if isinstance(piece, str) else self._text(piece, _argument(piece, arguments, keywords, self.text))
            for piece in self.pieces
        )
        return checked_operation(text, f"step {self.text!r}")

    def _text(self, field: _Field, value: object) -> str:
        try:
            text = _name_part(value)
        except ValueError as error:  # an int of too many digits
            raise InvalidArgument(f"step name {self.text!r}: {field.parameter} cannot be part of it: {error}") from None
        if text is None:
            raise InvalidArgument(
                f"step name {self.text!r}: {field.parameter} is of type {type(value).__name__}; a name takes str, int,"
                " bool, UUID, Enum and date values: name another parameter, or give the call's name with .named()"
            )
        return text


def _field(parameter: str, text: str, function: Callable[..., Any]) -> _Field:
    parameters = inspect.signature(function).parameters
    found = parameters.get(parameter)
    if found is None or found.kind in _VARIADIC:
        owner = getattr(function, "__qualname__", "the function")
        known = ", ".join(name for name, one in parameters.items() if one.kind not in _VARIADIC) or "none"
        raise RegistrationError(
            f"step name {text!r}: {{{parameter}}} is no parameter of {owner}; its parameters: {known}"
        )
    position = list(parameters).index(parameter) if found.kind is not inspect.Parameter.KEYWORD_ONLY else None
    return _Field(parameter, position, found.default)


def _argument(field: _Field, arguments: Sequence[Any], keywords: Mapping[str, Any], text: str) -> Any:
    if field.position is not None and field.position < len(arguments):
        return arguments[field.position]
    value = keywords.get(field.parameter, field.default)
    if value is _MISSING:
        raise TypeError(f"step {text!r} was called without its argument {field.parameter!r}")
    return value


def _name_part(value: object) -> str | None:
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, str | int | UUID) else None
