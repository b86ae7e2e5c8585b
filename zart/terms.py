"""What a start or a list asks for, checked before anything reaches the database. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from zart.codec import MARK, PLAIN, Codec, codec_for
from zart.config import MAX_EXECUTION_ID_BYTES
from zart.durable import MAX_PRIORITY, DurableExecution
from zart.duration import Duration, seconds_of
from zart.engine.spec import DurableSpec
from zart.errors import InvalidArgument, RegistrationError, SerializationError, shown
from zart.model import ExecutionStatus
from zart.names import checked_name, checked_text

MAX_INPUT_BYTES = 64 * 1024 * 1024

CHILD_PREFIX = "zart:"

# By which dataclasses, msgspec Structs and pydantic models, and nothing else, are known.
_FIELDS = ("__dataclass_fields__", "__struct_fields__", "__pydantic_fields__")


@dataclass(frozen=True, slots=True)
class StartTerms:
    """What the executions of one call have in common. Durations in seconds."""

    task_name: str
    queue: str
    priority: int
    delay: float
    max_retries: int
    timeout: float | None
    input_codec: Codec
    output_codec: Codec
    takes_data: bool = True

    def encode(self, execution_id: str, data: Any) -> str:
        """The input as JSON text.

        Raises:
            SerializationError: it cannot be kept as it is; names the execution.
        """
        where = f"input of execution {execution_id!r}"
        if not self.takes_data:
            if data is not None:
                raise InvalidArgument(f"{where}: {self.task_name!r} takes no data")
            return "null"
        return encoded_plain(data, where) if self.input_codec is PLAIN else _encoded(self.input_codec, data, where)


def encoded_plain(value: Any, where: str) -> str:
    """JSON text of a value whose reader's annotation is not known here: an input by name, an event's payload.

    Raises:
        SerializationError: it cannot be kept as it is; names `where`.
    """
    if type(value) is dict and MARK in value:
        raise SerializationError(f"the key {MARK!r} is zart's own there; use another", where=where)
    return _encoded(_codec_by(value, where), value, where)


def _codec_by(value: Any, where: str) -> Codec:
    """The codec of a value whose own type says how it is kept, as a dataclass's does; PLAIN for any other."""
    if isinstance(value, type) or not any(hasattr(value, field) for field in _FIELDS):
        return PLAIN
    try:
        return codec_for(type(value), where=where)
    except RegistrationError as error:
        raise SerializationError(str(error), where=where) from error.__cause__


def _encoded(codec: Codec, value: Any, where: str) -> str:
    try:
        text = codec.encode(value)
    except SerializationError as error:
        raise error.located(where) from error.__cause__
    if len(text) > MAX_INPUT_BYTES:
        raise SerializationError(
            f"{len(text):,} bytes are more than the {MAX_INPUT_BYTES:,} that are allowed;"
            " keep it elsewhere and pass where it is",
            where=where,
        )
    return text.decode()


def terms_by_name(task_name: object, *, queue: object, priority: object, delay: Duration | None) -> StartTerms:
    """Terms of a task that this process need not know: any JSON data, no retries, no timeout of its own.

    Raises:
        InvalidArgument: a value cannot be used.
    """
    return StartTerms(
        task_name=checked_name(task_name, "the task"),
        queue=checked_name(queue, "the queue"),
        priority=_checked_priority(priority),
        delay=_seconds(delay),
        max_retries=0,
        timeout=None,
        input_codec=PLAIN,
        output_codec=PLAIN,
    )


def spec_of(durable: object) -> DurableSpec:
    """What a durable function declares.

    Raises:
        InvalidArgument: it is none; a class of them is one when it is called.
    """
    if isinstance(durable, DurableExecution):
        return durable.spec
    raise InvalidArgument(
        f"expected a @zart_durable function or an instance of a DurableExecution, got {shown(durable)}"
    )


def terms_of(spec: DurableSpec, *, queue: object, priority: object, delay: Duration | None) -> StartTerms:
    """Terms of a durable function; `queue` and `priority` None take what it declares.

    Raises:
        InvalidArgument: a value cannot be used.
    """
    return StartTerms(
        task_name=spec.task_name,
        queue=spec.queue if queue is None else checked_name(queue, "the queue"),
        priority=spec.priority if priority is None else _checked_priority(priority),
        delay=_seconds(delay),
        max_retries=spec.retry.retries,
        timeout=spec.timeout,
        input_codec=spec.input_codec,
        output_codec=spec.output_codec,
        takes_data=spec.takes_data,
    )


def checked_id(execution_id: object) -> str:
    """The id, if an execution can have it, including those that zart gives to children.

    Raises:
        InvalidArgument: it cannot.
    """
    return checked_text(execution_id, "execution_id", MAX_EXECUTION_ID_BYTES)


def checked_own_id(execution_id: object) -> str:
    """The id, if a caller may give it to an execution.

    Raises:
        InvalidArgument: it cannot be used, or belongs to zart.
    """
    checked = checked_id(execution_id)
    if checked.startswith(CHILD_PREFIX):
        raise InvalidArgument(
            f"execution_id {checked!r} begins with {CHILD_PREFIX!r}, which zart keeps for children; use another id"
        )
    return checked


def checked_pairs(items: object) -> Iterator[tuple[str, Any]]:
    """The items of `start_many`, each an id and its data, one by one.

    Raises:
        InvalidArgument: they cannot be gone through, or one is no pair or has an id that cannot be used.
    """
    try:
        iterator = iter(cast("Iterable[object]", items))
    except TypeError:
        raise InvalidArgument(f"items must be pairs (execution_id, data), got {shown(items)}") from None
    for index, item in enumerate(iterator):
        pair = _parts(item)
        if len(pair) != 2:
            raise InvalidArgument(
                f"each of the items must be a pair (execution_id, data), number {index} is {shown(item)}"
            )
        yield checked_own_id(pair[0]), pair[1]


def checked_status(status: ExecutionStatus | str | None) -> ExecutionStatus | None:
    """The status that a list asks for; None for any.

    Raises:
        InvalidArgument: there is no such status.
    """
    if status is None:
        return None
    for each in ExecutionStatus:
        if each.value == status:
            return each
    raise InvalidArgument(f"status must be one of {', '.join(ExecutionStatus)}; got {shown(status)}")


def check_moment(name: str, moment: object) -> None:
    """Raise when a moment that a list asks for is none, or could be any of several.

    Raises:
        InvalidArgument: it is no datetime, or has no time zone.
    """
    if moment is None:
        return
    if not isinstance(moment, datetime):
        raise InvalidArgument(f"{name} must be a datetime with a time zone, got {shown(moment)}")
    if moment.utcoffset() is None:
        raise InvalidArgument(f"{name} must have a time zone, got {shown(moment)}; add one, as in tzinfo=UTC")


def _parts(item: object) -> Sequence[Any]:
    return cast("Sequence[Any]", item) if isinstance(item, tuple | list) else ()


def _seconds(delay: Duration | None) -> float:
    return 0.0 if delay is None else seconds_of(delay, "delay")


def _checked_priority(priority: object) -> int:
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidArgument(
            f"priority must be a whole number, 0 (first) to {MAX_PRIORITY} (last), got {shown(priority)}"
        )
    return priority
