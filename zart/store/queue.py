"""The hot table from the workers' side: what is claimed, what it has done so far, and which lanes have work.

The tick itself is not wrapped: the ticker calls `connection.fetch(statement("tick", schema), *columns)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncpg import Record

from zart.postgres.connection import Connection
from zart.store.statements import statement


async def load_claims(connection: Connection, schema: str, bucket: int, ids: Sequence[int]) -> list[Record]:
    """The records of claimed executions.

    Columns: id, execution_id, task_name, input (JSON text), attempt, max_retries, priority, deadline_in (seconds from
    now, None without deadline), step_name, parent, lane, age (seconds since it was started).
    """
    return await connection.fetch(statement("load_claims", schema), bucket, ids)


async def load_journal(
    connection: Connection, schema: str, bucket: int, ids: Sequence[int], runs: Sequence[int], worker: int
) -> list[Record]:
    """Journals, failed tries and counters of the runs that `worker` holds, all of one snapshot.

    Rows by `what`, each with id and epoch:
        counters: wakes, done; there is none when the claim is gone.
        checkpoint: step_key, kind, status, attempts, name, result, error, due_in, seconds.
        attempt: step_key, attempts (its number), name, error, due_in, seconds, began_ago.
    `due_in` is in seconds from now, `began_ago` in seconds before it (in `counters`: since the run's first claim); JSON
    comes as text.
    """
    return await connection.fetch(statement("load_journal", schema), bucket, ids, runs, worker)


async def look(
    connection: Connection,
    schema: str,
    bucket: int,
    worker: int,
    ids: Sequence[int],
    epochs: Sequence[int],
    seen: Sequence[int],
    done_at: Sequence[int],
) -> dict[int, int | None]:
    """Waiting bodies that have something to hear: a wake-up, their children's end, the loss of their claim.

    A body may park with a counter from here only if it read its journal, or the key it waits for, after this call: the
    counter says which wake-ups it knows of.

    Args:
        seen: the wakes that each body knows of; -1: tell them in any case.
        done_at: how many children's ends each body waits for, those it has included.

    Returns:
        Wakes by id, None when `worker` does not have the claim any more.
    """
    rows = await connection.fetch(statement("look", schema), bucket, worker, ids, epochs, seen, done_at)
    return {row[0]: row[1] for row in rows}


async def still_held(
    connection: Connection, schema: str, bucket: int, worker: int, ids: Sequence[int], epochs: Sequence[int]
) -> set[tuple[int, int]]:
    """Those of the given claims (id, epoch) that `worker` still has."""
    rows = await connection.fetch(statement("still_held", schema), bucket, worker, ids, epochs)
    return {(row[0], row[1]) for row in rows}


async def read_checkpoints(
    connection: Connection, schema: str, bucket: int, ids: Sequence[int], runs: Sequence[int], keys: Sequence[int]
) -> list[Record]:
    """What is stored under the given keys, whoever wrote it.

    Columns: id, run, step_key, kind, status, attempts, name, result, error, due_in (seconds from now), epoch.
    """
    return await connection.fetch(statement("read_checkpoints", schema), bucket, ids, runs, keys)


async def read_endings(connection: Connection, schema: str, bucket: int, ids: Sequence[int]) -> list[Record]:
    """How executions stand in their records: id, status (0 unfinished), epoch of the claim that ended them, run."""
    return await connection.fetch(statement("read_endings", schema), bucket, ids)


async def read_deaths(connection: Connection, schema: str, bucket: int, ids: Sequence[int]) -> list[Record]:
    """Of executions that were set apart: id, death (JSON text), and last_name, the last name in the journal."""
    return await connection.fetch(statement("read_deaths", schema), bucket, ids)


async def add_lanes(
    connection: Connection, schema: str, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Lane numbers of (queue, task_name) pairs, made where missing.

    Call it outside of a caller's transaction: others that need the same pair would wait for its end.
    """
    queues, task_names = _columns(pairs)
    lanes = await find_lanes(connection, schema, zip(queues, task_names, strict=True))
    if len(lanes) < len(queues):
        await connection.execute(statement("add_lanes", schema), queues, task_names)
        lanes = await find_lanes(connection, schema, zip(queues, task_names, strict=True))
    return lanes


async def find_lanes(
    connection: Connection, schema: str, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Lane numbers of those (queue, task_name) pairs that have one."""
    rows = await connection.fetch(statement("find_lanes", schema), *_columns(pairs))
    return {(row["queue"], row["task_name"]): row["lane"] for row in rows}


async def lanes_served(
    connection: Connection,
    schema: str,
    task_names: Sequence[str],
    queues: Sequence[str] | None,
    timeout: float | None = None,
) -> dict[int, tuple[str, str]]:
    """Lanes of these tasks in these queues (None: all queues), in order of number; each with its queue and task.

    Args:
        timeout: seconds, None for the connection's own.
    """
    rows = await connection.fetch(statement("lanes_served", schema), task_names, queues, timeout=timeout)
    return {row[0]: (row[1], row[2]) for row in rows}


async def ready_lanes(
    connection: Connection, schema: str, bucket: int, task_names: Sequence[str], queues: Sequence[str] | None
) -> list[int]:
    """Lanes that have claimable work now. Negative: work set apart after a crash, for a worker that holds nothing."""
    rows = await connection.fetch(statement("ready_lanes", schema), bucket, task_names, queues)
    return [row[0] for row in rows]


def _columns(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    distinct = sorted(set(pairs))
    return [queue for queue, _ in distinct], [task_name for _, task_name in distinct]
