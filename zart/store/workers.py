"""Workers as the database knows them: their identity, lease and idle mark, and how their claims pass on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from asyncpg import Record

from zart.postgres.connection import Connection
from zart.store.statements import statement

NOBODY = 0


@dataclass(frozen=True, slots=True)
class Freed:
    """A claim taken from a dead worker. `crashes`: how often its execution is held to have killed its process since it
    last completed a turn."""

    id: int
    crashes: int


@dataclass(frozen=True, slots=True)
class TakeOver:
    """What one call of `take_over_worker` did. Unless `gone`, rows were locked or its last tick still commits.

    `busy`: the worker itself is locked, or its lease lives, so nothing was done yet. `apart`: ids of the executions
    that were set apart.
    """

    gone: bool
    freed: tuple[Freed, ...]
    busy: bool = False
    apart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpiredWorker:
    """A worker whose lease has passed by the database's clock."""

    id: int
    bucket: int
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """A worker's lease in one bucket. `remaining`: seconds by the database's clock, negative when it has passed.

    `dead`: it was taken over, but for claims that were locked at that moment.
    """

    id: int
    bucket: int
    lease_until: datetime
    remaining: float
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """What a worker serves; queues None for all."""

    id: int
    task_names: tuple[str, ...]
    queues: tuple[str, ...] | None


def channel(schema: str) -> str:
    """The NOTIFY channel of the hints for this schema: an identifier as long as the schema's own name may be."""
    return schema


async def read_timeline(connection: Connection, schema: str) -> str:
    """Which history of which cluster the server writes; a replica that is promoted begins another one.

    "" where the server does not tell, as some services that are built on PostgreSQL.
    """
    return await _told(connection, "read_timeline", schema)


async def read_database(connection: Connection, schema: str) -> str:
    """Which database of which cluster the session is in; "" where the server does not tell, as `read_timeline`."""
    return await _told(connection, "read_database", schema)


async def _told(connection: Connection, name: str, schema: str) -> str:
    try:
        found: str = await connection.fetchval(statement(name, schema))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFunctionError):
        return ""
    return found


async def reregister(
    connection: Connection,
    schema: str,
    bucket: int,
    old: int,
    new: int,
    *,
    lease: float,
    host: str,
    pid: int,
    task_names: Sequence[str],
    queues: Sequence[str] | None,
) -> list[Record]:
    """Register a worker and, after a lost connection, make it the heir of its former self `old`.

    Send it again with the same ids until it is answered. The answer is the truth: every claim that `new` holds, as id,
    run, epoch, wakes, done, lane (negative: set apart). Claims of `old` whose rows were locked stay with it, for
    `take_over_worker`.

    Args:
        connection: the one that will tick. Its session is noted, for `evict_backend`, unless it is a pooler's.
        old: NOBODY when there is none.
        lease: seconds until the lease passes unless renewed.
        task_names, queues: what the worker serves; queues None for all.

    Raises:
        asyncpg.LockNotAvailableError: the last tick of `old` did not end within 2 s; `evict_backend(old)`, then again.
    """
    return await connection.fetch(
        statement("reregister", schema),
        *(bucket, old, new, lease, host, pid, task_names, queues, connection.get_server_pid()),
    )


async def renew_leases(
    connection: Connection, schema: str, bucket: int, worker_ids: Sequence[int], lease: float
) -> set[int]:
    """Renew leases to `lease` seconds from now; gives back those renewed. One missing twice running was taken over."""
    rows = await connection.fetch(statement("renew_leases", schema), bucket, worker_ids, lease)
    return {row[0] for row in rows}


async def mark_idle(
    connection: Connection, schema: str, bucket: int, worker_ids: Sequence[int], idle: bool
) -> set[int]:
    """Note whether workers wait for a hint; gives back those marked, the rows of others were locked.

    Look for work again after marking workers idle: what was started just before sent no hint.
    """
    rows = await connection.fetch(statement("mark_idle", schema), bucket, worker_ids, idle)
    return {row[0] for row in rows}


async def hint(
    connection: Connection, schema: str, bucket: int, queue: str | None = None, task_name: str | None = None
) -> bool:
    """After a commit that made work: tell idle workers that serve it (None: any). True if there was one to tell."""
    told: bool = await connection.fetchval(statement("hint", schema), bucket, queue, task_name)
    return told


async def expired_workers(connection: Connection, schema: str, buckets: Sequence[int]) -> list[ExpiredWorker]:
    """Workers whose lease has passed, the longest first. That is no proof of death: the database may have been away."""
    rows = await connection.fetch(statement("expired_workers", schema), buckets)
    return [ExpiredWorker(row["id"], row["bucket"], row["lease_until"]) for row in rows]


async def read_leases(connection: Connection, schema: str, buckets: Sequence[int]) -> list[WorkerLease]:
    """The leases of all workers, whoever they belong to."""
    rows = await connection.fetch(statement("read_leases", schema), buckets)
    return [WorkerLease(row["id"], row["bucket"], row["lease_until"], row["remaining"], row["dead"]) for row in rows]


async def read_services(connection: Connection, schema: str, bucket: int, worker_ids: Sequence[int]) -> list[Service]:
    """What the given workers have registered to serve; those not registered are left out."""
    rows = await connection.fetch(statement("read_services", schema), bucket, worker_ids)
    return [
        Service(row["id"], tuple(row["task_names"]), None if row["queues"] is None else tuple(row["queues"]))
        for row in rows
    ]


async def take_over_worker(
    connection: Connection,
    schema: str,
    bucket: int,
    worker: int,
    *,
    proof: bool,
    blame: Sequence[int] | None,
    death: str | None = None,
) -> TakeOver:
    """Free claims of a worker that is gone. Never waits; repeat until `gone`, and after 2 s of trying `evict_backend`.

    Args:
        proof: its process is known to be dead. Without it only an expired lease is taken.
        blame: ids that were executing when it died; empty: none of them; None: unknown, all count.
        death: how, a JSON object: the error of those that are set apart, until they end.
    """
    rows = await connection.fetch(statement("take_over_worker", schema), bucket, worker, proof, blame, death)
    return TakeOver(
        gone=any(row["what"] == "gone" for row in rows),
        freed=tuple(Freed(row["id"], row["crashes"]) for row in rows if row["what"] == "freed"),
        busy=any(row["what"] == "busy" for row in rows),
        apart=tuple(row["execution_id"] for row in rows if row["what"] == "apart"),
    )


async def evict_backend(connection: Connection, schema: str, bucket: int, worker: int) -> bool:
    """End the database session of a worker, which holds its last tick open. False: there is none that is its own."""
    ended: bool = await connection.fetchval(statement("evict_backend", schema), bucket, worker)
    return ended
