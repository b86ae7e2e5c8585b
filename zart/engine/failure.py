"""Failures as data: a bounded record of an exception, and the exception a record comes back as.

Live and replayed code meet the same exception because both are rebuilt from the record.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, cast

import orjson

from zart.codec import PLAIN
from zart.errors import NonRetryable, RetryExhausted, SerializationError, StepFailed, StepTimedOut, ZartError
from zart.model import Outcome

# Enough to recognise a failure; a 10 MB message must not become a 10 MB row.
MAX_MESSAGE_CHARACTERS = 4_000
MAX_TRACEBACK_CHARACTERS = 8_000
MAX_CAUSES = 5

Record = dict[str, Any]


def type_name(kind: type[BaseException]) -> str:
    """Qualified name, without the module for built-in exceptions."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def describe(error: BaseException) -> Record:
    """A bounded JSON record of any exception, whatever its `__str__` does."""
    record: Record = {"type": storable(type_name(type(error)), 300), "message": _message(error)}
    if trace := _traceback(error):
        record["traceback"] = trace
    if causes := [f"{type_name(type(cause))}: {_message(cause)[:500]}" for cause in _causes(error)]:
        record["causes"] = causes
    return record


def step_failure(error: BaseException, kind: str, attempts: int) -> Record:
    """The record of a step that ended in failure: `kind` is failed, exhausted, timed_out or serialization."""
    record = describe(error)
    record["kind"], record["attempts"] = kind, attempts
    if kind == "serialization" and isinstance(error, SerializationError):
        record["path"], record["message"] = error.path, storable(error.reason, MAX_MESSAGE_CHARACTERS)
    return record


def is_declared(error: BaseException, raises: tuple[type[Exception], ...]) -> bool:
    """Whether the error is one that the step declares. Zart's own are no decisions, even when Exception is declared."""
    return isinstance(error, raises) and (not isinstance(error, ZartError) or isinstance(error, NonRetryable))


def declared_failure(error: Exception, attempts: int) -> Record:
    """The record of a declared (`raises=`) error: its class, `args` and `__dict__`.

    Raises:
        SerializationError: they are no plain JSON values.
    """
    state = {"args": list(error.args), "state": dict(error.__dict__)}
    PLAIN.encode(state)
    return {**describe(error), **state, "kind": "declared", "attempts": attempts}


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
    if kind == "declared" and (found := _declared_type(record["type"], raises)):
        error = found.__new__(found)
        error.args = tuple(record["args"])
        error.__dict__.update(record["state"])
        return error
    if kind == "serialization":
        return SerializationError(record["message"], path=record.get("path", "$"), step=step, attempts=attempts)
    made = {"exhausted": RetryExhausted, "timed_out": StepTimedOut}.get(kind, StepFailed)
    return made(
        record["message"],
        step=step,
        type_name=record["type"],
        traceback_text=record.get("traceback", ""),
        attempts=attempts,
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


def _declared_type(name: str, raises: tuple[type[Exception], ...]) -> type[Exception] | None:
    """The declared type of this name, else a subclass of one, else the first declared: never an import."""
    return next(
        (found for found in _with_subclasses(raises) if type_name(found) == name), raises[0] if raises else None
    )


def _with_subclasses(types: tuple[type[Exception], ...]) -> Iterator[type[Exception]]:
    yield from types
    for declared in types:
        yield from _with_subclasses(tuple(declared.__subclasses__()))


def _message(error: BaseException) -> str:
    try:
        return storable(str(error), MAX_MESSAGE_CHARACTERS)
    except Exception as broken:
        return f"(its text cannot be read: {type_name(type(broken))})"


def _traceback(error: BaseException) -> str:
    try:
        lines = traceback.format_tb(error.__traceback__)
    except Exception:
        return ""
    text = storable("".join(lines), 20 * MAX_TRACEBACK_CHARACTERS)
    return text if len(text) <= MAX_TRACEBACK_CHARACTERS else "...\n" + text[-MAX_TRACEBACK_CHARACTERS:]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an exception came of, nearest first; for a group, what is in it."""
    found = _next_causes(error)
    for _ in range(MAX_CAUSES):
        if not found:
            return
        yield found[0]
        found = [*found[1:], *_next_causes(found[0])]


def _next_causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return list(cast("BaseExceptionGroup[BaseException]", error).exceptions)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [] if cause is None else [cause]
