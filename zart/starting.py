"""Starting executions: rows in chunks, lanes made when missing, idle workers told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from zart import tracing
from zart.codec import bucket_of
from zart.errors import ExecutionAlreadyExists
from zart.hints import HintSender
from zart.model import StartedMany
from zart.postgres.connection import Connection
from zart.store import executions, queue, workers
from zart.store.executions import Started
from zart.tables import Tables
from zart.terms import StartTerms, checked_own_id, checked_pairs

# One statement of many rows: enough to make the round trip cheap, few enough to keep memory and locks short.
CHUNK_ROWS = 1_000
CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one statement, all of one bucket, by id."""

    bucket: int
    ids: list[str]
    inputs: list[str]


def chunks(inputs: Iterable[tuple[str, str]], buckets: int) -> Iterator[Chunk]:
    """Rows (id, JSON text) for the statements of one transaction, in one order for all callers: by bucket, then by id.

    Python's order of text is that of `collate "C"`, so overlapping calls lock in the same order and never deadlock.
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


class Starter:
    """Starts executions in the tables of one schema."""

    def __init__(self, tables: Tables, hints: HintSender) -> None:
        self._tables, self._hints = tables, hints
        self._lanes: dict[tuple[str, str], int] = {}

    async def start(self, terms: StartTerms, execution_id: str, data: Any, conn: Connection | None) -> Started:
        """Start one execution, or find the one that has its id.

        Raises:
            ExecutionAlreadyExists: that one is of another task.
            InvalidArgument, SerializationError: id or data cannot be used.
        """
        execution_id = checked_own_id(execution_id)
        text = terms.encode(execution_id, data)
        (chunk,) = chunks([(execution_id, text)], await self._tables.buckets())
        lane = await self._lane(terms)

        async def insert(connection: Connection, token: int | None) -> Started:
            (started,) = await self._insert(connection, terms, lane, chunk, token)
            if started.created and conn is not None:
                await self._hint_within(connection, terms, [chunk.bucket])
            return started

        started = await self._tables.write(conn, f"starting execution {execution_id!r}", insert)
        if started.created and conn is None:
            self._hint_after(terms, [chunk.bucket])
        return started

    async def start_many(
        self, terms: StartTerms, items: Iterable[tuple[str, Any]], conn: Connection | None
    ) -> StartedMany:
        """Start many executions in one transaction; raises as `start`, and then none is started."""
        inputs = [(execution_id, terms.encode(execution_id, data)) for execution_id, data in checked_pairs(items)]
        rows = list(chunks(inputs, await self._tables.buckets()))
        touched = sorted({chunk.bucket for chunk in rows})
        lane = await self._lane(terms)

        async def insert(connection: Connection, token: int | None) -> list[str]:
            existing: list[str] = []
            async with connection.transaction():
                for chunk in rows:
                    found = await self._insert(connection, terms, lane, chunk, token)
                    existing += [each.execution_id for each in found if not each.created]
            if conn is not None:
                await self._hint_within(connection, terms, touched)
            return existing

        doing = f"starting {len(inputs)} executions of {terms.task_name!r}"
        existing = await self._tables.write(conn, doing, insert, len(inputs))
        if conn is None:
            self._hint_after(terms, touched)
        return StartedMany(sum(len(chunk.ids) for chunk in rows) - len(existing), tuple(existing))

    async def _insert(
        self, connection: Connection, terms: StartTerms, lane: int, chunk: Chunk, token: int | None
    ) -> list[Started]:
        """One statement. Gives back those that existed, and a single one whether it did or not."""
        found = await executions.start(
            connection,
            self._tables.schema,
            chunk.bucket,
            chunk.ids,
            chunk.inputs,
            task_name=terms.task_name,
            lane=lane,
            priority=terms.priority,
            delay=terms.delay,
            max_retries=terms.max_retries,
            timeout=terms.timeout,
            traceparent=tracing.here(),
            token=token,
        )
        for each in found:
            if each.task_name != terms.task_name:
                raise ExecutionAlreadyExists(each.execution_id, each.task_name, terms.task_name)
        if not found and len(chunk.ids) == 1:  # the one that existed was deleted before it could be read
            return await self._insert(connection, terms, lane, chunk, token)
        return found

    async def _lane(self, terms: StartTerms) -> int:
        """The number of queue and task; a missing one is made outside of the caller's transaction, so nobody waits."""
        pair = (terms.queue, terms.task_name)
        if pair not in self._lanes:
            self._lanes |= await self._tables.call(
                f"adding task {pair[1]!r} to queue {pair[0]!r}",
                lambda connection: queue.add_lanes(connection, self._tables.schema, [pair]),
            )
        return self._lanes[pair]

    # Work that is due later is found by polling: nobody needs a hint for it.

    def _hint_after(self, terms: StartTerms, buckets: Sequence[int]) -> None:
        for bucket in () if terms.delay else buckets:
            self._hints.send(bucket, terms.queue, terms.task_name)

    async def _hint_within(self, connection: Connection, terms: StartTerms, buckets: Sequence[int]) -> None:
        """PostgreSQL sends it at the commit. A worker that goes idle before that commit finds the work by polling."""
        for bucket in () if terms.delay else buckets:
            await workers.hint(connection, self._tables.schema, bucket, terms.queue, terms.task_name)
