"""What is wrong with a value that cannot be kept, and where: the paths and reasons of errors."""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
from collections.abc import Awaitable, Callable
from datetime import datetime, time
from decimal import Decimal
from typing import Any, cast

import msgspec

_SEQUENCES = frozenset((list, tuple))
_AT_PATH = re.compile(r"(.*) - at `(.*)`")
_UNKNOWN_TYPE = re.compile(r"Encoding objects of type .* is unsupported|Unable to serialize unknown type: .*")
# What pydantic puts around the text of a validator, and between what is wrong and how it came to see it.
_PREFIX = re.compile(r"(?:Value error|Assertion failed), ")
_HOW = re.compile(r", unable to parse .*")
_LONGEST_REASON = 300
_show = reprlib.Repr()
_show.maxstring = _show.maxother = 80


def find_difference(value: Any, copy: Any, path: str = "$") -> tuple[str, str] | None:
    """Path and reason of the first part that came back as something else; None when nothing did.

    A tuple may come back as a list, and a time zone as the offset it stood for. What does not compare equal, such as
    objects of a class without `__eq__`, is compared part by part.
    """
    if _equal(value, copy):
        return None
    parts, copied = _parts_of(value), _parts_of(copy)
    if parts is None or copied is None:
        return None if _same_leaf(value, copy) else (path, f"{_show.repr(value)} would come back as {_show.repr(copy)}")
    if type(value) is not type(copy) and not {type(value), type(copy)} <= _SEQUENCES:
        return path, f"a {type(value).__qualname__} would come back as a {type(copy).__qualname__}"
    for step in [*parts, *copied]:
        if step not in copied:
            return path + step, "this would be lost"
        if step not in parts:
            return path + step, "this would be added"
        difference = find_difference(parts[step], copied[step], path + step)
        if difference is not None:
            return difference
    return None


def find_refused(value: Any, lower: Callable[[Any], Any], path: str = "$") -> tuple[str, Any]:
    """Path and value of the innermost part that `lower` refuses; `value` is known to be refused."""
    for step, part in (_parts_of(value) or {}).items():
        try:
            lower(part)
        except RecursionError:
            break
        except Exception:  # whatever it raises, it refuses
            return find_refused(part, lower, path + step)
    return path, value


def find_pending(value: Any) -> tuple[str, str] | None:
    """Path of the first part that has yet to be awaited, and the part as messages show it; None when there is none."""
    seen: set[int] = set()
    left = [("$", value)]
    while left:
        path, part = left.pop()
        if isinstance(part, Awaitable):
            return path, _show.repr(part)
        if id(part) not in seen:
            seen.add(id(part))
            left += [(path + step, inner) for step, inner in reversed((_parts_of(part) or {}).items())]
    return None


def explain(error: Exception) -> tuple[str, str]:
    """Path and reason, on one line, of an error that a library or a validator of the user raised."""
    path, text = "$", " ".join(str(error).partition("For further information")[0].split()) or "no reason was given"
    if isinstance(error, msgspec.ValidationError) and (located := _AT_PATH.fullmatch(text)):
        text, path = located.groups()
    elif type(error).__module__.startswith("pydantic") and hasattr(error, "errors"):
        first = cast("Any", error).errors()[0]
        text, path = _useful(first["msg"]), "$" + "".join(_member(step) for step in first["loc"] if step != "[key]")
    elif _UNKNOWN_TYPE.fullmatch(text):
        text = "it has no form in JSON"
    elif isinstance(error, RecursionError):
        text = "it is nested too deep, or it contains itself"
    elif not isinstance(error, TypeError | ValueError):
        text = f"{type(error).__name__}: {text}"
    return path, text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def _useful(text: str) -> str:
    """A message of pydantic as one line, without what it says of itself."""
    line = " ".join(text.split())
    if _PREFIX.match(line):
        return _PREFIX.sub("", line, count=1)
    return _HOW.sub("", line).replace("Input should", "it should", 1)


def _parts_of(value: Any) -> dict[str, Any] | None:
    """The parts of a container or record by their step of the path; None for anything else."""
    kind = cast("Any", type(value))
    names: list[str]
    if isinstance(value, dict):
        return {_member(key): part for key, part in cast("dict[object, Any]", value).items()}
    if isinstance(value, list | tuple):
        return {f"[{index}]": part for index, part in enumerate(cast("list[Any]", value))}
    if hasattr(kind, "__pydantic_fields__"):
        extra: dict[str, Any] = getattr(value, "__pydantic_extra__", None) or {}
        private: dict[str, Any] = getattr(value, "__pydantic_private__", None) or {}
        names = [*kind.__pydantic_fields__, *extra, *private]
    elif isinstance(value, msgspec.Struct):
        names = list(value.__struct_fields__)
    elif dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [each.name for each in kind.__attrs_attrs__]
    else:
        return None
    return {f".{name}": getattr(value, name, None) for name in names}


def _member(key: Any) -> str:
    """The step of a path to a key: `.name`, `["two words"]` or `[7]`."""
    if type(key) is str:
        return f".{key}" if key.isidentifier() and key.isascii() else f"[{json.dumps(key)}]"
    return f"[{key!a}]"


def _equal(value: Any, copy: Any) -> bool:
    try:
        return bool(value == copy)
    except Exception:  # a comparison may raise (a signalling NaN, an array); the parts are compared then
        return False


def _same_leaf(value: Any, copy: Any) -> bool:
    if isinstance(value, Decimal) and isinstance(copy, Decimal):
        return str(value) == str(copy)  # NaN equals nothing
    if isinstance(value, datetime | time) and type(value) is type(copy):
        # in an hour that a zone has twice or never, a datetime equals none of another zone
        return value.replace(tzinfo=None) == copy.replace(tzinfo=None) and value.utcoffset() == copy.utcoffset()
    return False
