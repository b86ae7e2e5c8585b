"""What a start asks for, checked before anything reaches the database. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from zart.codec import PLAIN, Codec
from zart.config import MAX_EXECUTION_ID_BYTES
from zart.durable import MAX_PRIORITY, DurableExecution
from zart.duration import Duration, seconds_of
from zart.engine.spec import DurableSpec
from zart.errors import InvalidArgument, SerializationError
from zart.names import checked_name

MAX_INPUT_BYTES = 64 * 1024 * 1024

CHILD_PREFIX = "zart:"


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
        try:
            text = self.input_codec.encode(data)
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
    raise InvalidArgument(f"expected a @zart_durable function or an instance of a DurableExecution, got {durable!r}")


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
    if not isinstance(execution_id, str) or not execution_id:
        raise InvalidArgument(f"execution_id must be text of at least one character, got {execution_id!r}")
    if "\0" in execution_id:
        raise InvalidArgument(f"execution_id must not hold a NUL character, got {execution_id!r}")
    try:
        size = len(execution_id.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"execution_id holds half of a surrogate pair: {execution_id!r}") from None
    if size > MAX_EXECUTION_ID_BYTES:
        raise InvalidArgument(
            f"execution_id has {size} bytes, {MAX_EXECUTION_ID_BYTES} are allowed: {execution_id[:60]!r}..."
        )
    return execution_id


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
        raise InvalidArgument(f"items must be pairs (execution_id, data), got {reprlib.repr(items)}") from None
    for index, item in enumerate(iterator):
        pair = _parts(item)
        if len(pair) != 2:
            raise InvalidArgument(
                f"each of the items must be a pair (execution_id, data), number {index} is {reprlib.repr(item)}"
            )
        yield checked_own_id(pair[0]), pair[1]


def _parts(item: object) -> Sequence[Any]:
    return cast("Sequence[Any]", item) if isinstance(item, tuple | list) else ()


def _seconds(delay: Duration | None) -> float:
    return 0.0 if delay is None else seconds_of(delay, "delay")


def _checked_priority(priority: object) -> int:
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidArgument(f"priority must be a whole number, 0 (first) to {MAX_PRIORITY} (last), got {priority!r}")
    return priority
