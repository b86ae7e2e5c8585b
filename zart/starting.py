"""What a start asks for, checked before anything reaches the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from zart.codec import PLAIN, Codec, bucket_of
from zart.config import MAX_EXECUTION_ID_BYTES
from zart.duration import Duration, seconds_of
from zart.engine.spec import DurableSpec
from zart.errors import InvalidArgument, SerializationError
from zart.names import checked_name

MAX_PRIORITY = 1000
MAX_INPUT_BYTES = 64 * 1024 * 1024

# One statement of start_many: enough rows to make the round trip cheap, few enough to keep memory and locks short.
CHUNK_ROWS = 1_000
CHUNK_BYTES = 8 * 1024 * 1024

_RESERVED = "zart:"


@dataclass(frozen=True, slots=True)
class StartTerms:
    """What the executions of one call have in common. Durations in seconds."""

    task_name: str
    queue: str
    priority: int
    delay: float | None
    max_retries: int
    timeout: float | None
    codec: Codec
    takes_data: bool = True

    def encode(self, execution_id: str, data: Any) -> str:
        """The input as JSON text.

        Raises:
            SerializationError: it cannot be kept as it is; names the execution.
        """
        if not self.takes_data:
            if data is not None:
                raise InvalidArgument(f"{self.task_name!r} takes no data, so execution {execution_id!r} cannot have any")
            return "null"
        try:
            text = self.codec.encode(data)
        except SerializationError as error:
            raise SerializationError(f"{error.reason} (input of execution {execution_id!r})", path=error.path) from error
        if len(text) > MAX_INPUT_BYTES:
            raise SerializationError(
                f"{len(text):,} bytes are more than the {MAX_INPUT_BYTES:,} allowed, keep it elsewhere and pass where"
                f" it is (input of execution {execution_id!r})"
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
        delay=None if delay is None else seconds_of(delay, "delay"),
        max_retries=0,
        timeout=None,
        codec=PLAIN,
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
        delay=None if delay is None else seconds_of(delay, "delay"),
        max_retries=spec.retry.retries,
        timeout=spec.timeout,
        codec=spec.input_codec,
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
    if checked.startswith(_RESERVED):
        raise InvalidArgument(f"execution_id {checked!r} begins with {_RESERVED!r}, which zart keeps for children")
    return checked


def buckets_of(execution_id: str, buckets: int) -> Sequence[int]:
    """Where an execution can be: one bucket, or all for a child, which lives in its root's."""
    return range(buckets) if execution_id.startswith(_RESERVED) else (bucket_of(execution_id, buckets),)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one statement: one bucket, ids in order."""

    bucket: int
    ids: list[str]
    inputs: list[str]


def chunks(inputs: Iterable[tuple[str, str]], buckets: int) -> Iterator[Chunk]:
    """Rows for the statements of one transaction, in one order for all callers: by bucket, then by id.

    Text order by code point is what `collate "C"` gives, so overlapping calls lock in the same order and never deadlock.
    Of an id that comes twice the first row counts.
    """
    by_bucket: dict[int, dict[str, str]] = {}
    for execution_id, text in inputs:
        by_bucket.setdefault(bucket_of(execution_id, buckets), {}).setdefault(execution_id, text)
    for bucket, rows in sorted(by_bucket.items()):
        ordered = iter(sorted(rows.items()))
        while taken := _take(ordered):
            yield Chunk(bucket, [row[0] for row in taken], [row[1] for row in taken])


def _take(rows: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    taken: list[tuple[str, str]] = []
    size = 0
    for row in islice(rows, CHUNK_ROWS):
        taken.append(row)
        size += len(row[1])
        if size >= CHUNK_BYTES:
            break
    return taken


def _checked_priority(priority: object) -> int:
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidArgument(f"priority must be a whole number from 0 (first) to {MAX_PRIORITY} (last), got {priority!r}")
    return priority
