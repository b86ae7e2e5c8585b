"""Failures as data: a bounded record of an exception, and the exception a record comes back as.

Live and replayed code meet the same exception because both are rebuilt from the record.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import BuiltinFunctionType, MemberDescriptorType
from typing import Any, cast

import orjson

from zart.codec import PLAIN
from zart.config import DEFAULT_MAX_RESULT_BYTES
from zart.engine.where import is_between
from zart.errors import (
    ChildFailed,
    NonRetryable,
    RetryExhausted,
    SerializationError,
    StepFailed,
    StepTimedOut,
    ZartError,
)
from zart.model import Outcome

# Enough to recognise a failure; a 10 MB message must not become a 10 MB row.
MAX_MESSAGE_CHARACTERS = 4_000
MAX_TRACEBACK_CHARACTERS = 8_000
MAX_TRACEBACK_FRAMES = 100
MAX_NAME_CHARACTERS = 300
MAX_CAUSES = 5
MAX_BASES = 10

# Past a `__setattr__` of the type, as frozen dataclasses have.
_ARGS: Any = vars(BaseException)["args"]

Record = dict[str, Any]


def type_name(kind: type[BaseException]) -> str:
    """Qualified name, without the module for built-in exceptions; storable."""
    try:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # code of its metaclass
        name = "a type without a name"
    return storable(name, MAX_NAME_CHARACTERS)


def describe(error: BaseException) -> Record:
    """A bounded JSON record of any exception, whatever its `__str__` does."""
    record: Record = {"type": type_name(type(error)), "message": _message(error)}
    if trace := _traceback(error):
        record["traceback"] = trace
    if causes := [f"{type_name(type(cause))}: {_message(cause)[:500]}" for cause in _causes(error)]:
        record["causes"] = causes
        if isinstance(error, BaseExceptionGroup):  # its own text tells but how many there are
            record["message"] = storable(f"{record['message']}: {'; '.join(causes)}", MAX_MESSAGE_CHARACTERS)
    return record


def step_failure(error: BaseException, kind: str, attempts: int) -> Record:
    """The record of a step that ended in failure: `kind` is failed, exhausted, timed_out or serialization."""
    record = describe(error)
    record["kind"], record["attempts"] = kind, attempts
    if kind == "serialization" and isinstance(error, SerializationError):
        record["path"] = storable(error.path, MAX_NAME_CHARACTERS)
        record["message"] = storable(error.reason, MAX_MESSAGE_CHARACTERS)
        if error.where:
            record["where"] = storable(error.where, MAX_NAME_CHARACTERS)
    return record


def is_declared(error: BaseException, raises: tuple[type[Exception], ...]) -> bool:
    """Whether the error is one that the step declares. Zart's own are no decisions, even when Exception is declared."""
    return isinstance(error, raises) and (not isinstance(error, ZartError) or isinstance(error, NonRetryable))


def declared_failure(error: Exception, attempts: int, limit: int = DEFAULT_MAX_RESULT_BYTES) -> Record:
    """The record of a declared (`raises=`) error: its class, `args` and attributes.

    Args:
        error: one that `is_declared`.
        attempts: how many times the step was tried.
        limit: most bytes that args and attributes may take.

    Raises:
        SerializationError: they are no plain JSON values, or too large.
    """
    try:
        data, kept = PLAIN.round_trip({"args": list(error.args), "state": _state_of(error)})
        if len(data) > limit:
            raise SerializationError(f"it takes {len(data):,} bytes, the limit is {limit:,}; raise it with less in it")
    except SerializationError as refused:
        raise SerializationError(
            f"{refused.reason}; of an error that a step declares, args and attributes are kept as plain JSON values",
            path=refused.path,
            where=f"declared error {type_name(type(error))}",
        ) from error
    bases = [type_name(base) for base in type(error).__mro__[1:] if issubclass(base, Exception)]
    return {**describe(error), **kept, "bases": bases[:MAX_BASES], "kind": "declared", "attempts": attempts}


def encode(record: Record) -> bytes:
    """The record as JSON bytes."""
    return orjson.dumps(record)


def decode(text: str) -> Record:
    """The record of a stored error."""
    record: Record = orjson.loads(text)
    return record


def outcome_of(record: Record) -> Outcome:
    """The journal status that goes with a record."""
    kind = record["kind"]
    if kind == "declared":
        return Outcome.DECLARED
    return Outcome.TIMED_OUT if kind == "timed_out" else Outcome.FAILED


def rebuild(record: Record, step: str, raises: tuple[type[Exception], ...]) -> Exception:
    """The exception that a stored step failure comes back as."""
    kind, attempts = record.get("kind", "failed"), record.get("attempts", 1)
    if kind == "declared" and (error := _declared_error(record, raises)) is not None:
        return error
    if kind == "serialization":
        where = f"{record['where']} of step {step!r}" if "where" in record else ""
        path = record.get("path", "$")
        return SerializationError(record["message"], path=path, step=step, where=where, attempts=attempts)
    made = {"exhausted": RetryExhausted, "timed_out": StepTimedOut}.get(kind, StepFailed)
    return made(
        record["message"],
        step=step,
        type_name=record["type"],
        traceback_text=record.get("traceback", ""),
        attempts=attempts,
    )


CANCELLED: Record = {"kind": "cancelled", "type": "", "message": "it was cancelled"}
"""What stands for the error of a child that was cancelled by itself: those have no record."""


def rebuild_child(record: Record, name: str) -> ChildFailed:
    """The exception that the failure of a child execution comes back as."""
    return ChildFailed(
        record["message"],
        step=name,
        type_name=record["type"],
        traceback_text=record.get("traceback", ""),
        what="child execution",
        kind=record.get("kind", "failed"),
    )


def execution_failure(error: BaseException) -> Record:
    """The record of a body that ended in failure."""
    record = describe(error)
    if isinstance(error, StepFailed):
        record["kind"] = "step_failed"
        record["step"] = storable(str(getattr(error, "step", "")), 1_000)
        record["attempts"] = int(getattr(error, "attempts", 1))
        if text := getattr(error, "traceback_text", ""):
            record["traceback"] = storable(str(text), 2 * MAX_TRACEBACK_CHARACTERS)
    else:
        record["kind"] = "body_failed"
    return record


def storable(text: str, limit: int) -> str:
    """Text that JSON and PostgreSQL take: no NUL, no lone surrogate, at most `limit` characters."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: BaseException) -> str:
    """What an exception says, as one line."""
    return " ".join(f"{type_name(type(error))}: {_message(error)}".split())


# -- parts of a record


def _message(error: BaseException) -> str:
    try:
        return storable(str(error), MAX_MESSAGE_CHARACTERS)
    except BaseException as broken:  # a SystemExit out of here would end the worker's process
        return f"(its text cannot be read: {type_name(type(broken))})"


def _traceback(error: BaseException) -> str:
    """The innermost frames, from the user's outermost one on."""
    at = error.__traceback__
    while at is not None and is_between(at.tb_frame):
        at = at.tb_next
    try:
        text = storable("".join(traceback.format_tb(at, -MAX_TRACEBACK_FRAMES)), 20 * MAX_TRACEBACK_CHARACTERS)
    except Exception:  # a source file that cannot be read
        return ""
    return text if len(text) <= MAX_TRACEBACK_CHARACTERS else "...\n" + text[-MAX_TRACEBACK_CHARACTERS:]


def _causes(error: BaseException) -> list[BaseException]:
    """What an exception came of, nearest first; for a group, what is in it. Each once: causes may form a circle."""
    found, causes = [error], list[BaseException]()
    while found and len(causes) <= MAX_CAUSES:
        cause = found.pop(0)
        if not any(cause is known for known in causes):
            causes.append(cause)
            found += _next_causes(cause)[:MAX_CAUSES]
    return causes[1:]


def _next_causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return list(cast("BaseExceptionGroup[BaseException]", error).exceptions)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [] if cause is None else [cause]


# -- declared errors


def _state_of(error: Exception) -> dict[str, Any]:
    """The attributes of an exception, in `__dict__` and in slots."""
    state = dict(error.__dict__)
    for name, slot in _slots_of(type(error)).items():
        try:
            value = slot.__get__(error)
        except AttributeError:
            continue
        if value is not None or not _is_native(slot):  # a native one that is None has not been set
            state[name] = value
    return state


def _declared_error(record: Record, raises: tuple[type[Exception], ...]) -> Exception | None:
    """A declared error as it was raised, made without running code of its type; None when its type cannot be had."""
    kind = _declared_type(record, raises)
    if kind is None:
        return None
    try:
        error = _made_bare(kind)
        _ARGS.__set__(error, tuple(record["args"]))
        slots = _slots_of(kind)
        for name, value in record["state"].items():
            if name in slots:
                slots[name].__set__(error, value)
            else:
                error.__dict__[name] = value
    except Exception:  # an exotic type: it comes as data, like an error that is not declared
        return None
    return error


def _made_bare(kind: type[Exception]) -> Exception:
    """An exception of this type, by the native `__new__` under it: those of users may want arguments."""
    for base in kind.__mro__:
        make: Any = vars(base).get("__new__")
        if isinstance(make, BuiltinFunctionType):
            made: Exception = make(kind)
            return made
    raise TypeError(kind)


def _declared_type(record: Record, raises: tuple[type[Exception], ...]) -> type[Exception] | None:
    """The type that was raised, if this process knows it; else the declared one it is derived from. Never an import."""
    known = {type_name(kind): kind for kind in raises}
    name: str = record["type"]
    for kind in _with_subclasses(raises):
        if type_name(kind) == name:
            return kind
    return next((known[base] for base in record["bases"] if base in known), None)


def _with_subclasses(types: tuple[type[Exception], ...]) -> Iterator[type[Exception]]:
    yield from types
    for declared in types:
        yield from _with_subclasses(tuple(declared.__subclasses__()))


def _slots_of(kind: type[Exception]) -> dict[str, MemberDescriptorType]:
    """Attributes kept outside of `__dict__`: `__slots__`, and those of native types, as OSError.errno."""
    return {
        name: member
        for base in reversed(kind.__mro__[: kind.__mro__.index(BaseException)])
        for name, member in vars(base).items()
        # What an AttributeError is about may be anything, and is not what it says.
        if isinstance(member, MemberDescriptorType) and base is not AttributeError
    }


def _is_native(slot: MemberDescriptorType) -> bool:
    return slot.__objclass__.__module__ == "builtins"
