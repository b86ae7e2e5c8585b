"""Executions ended by hand: by a tick, without an engine."""

from __future__ import annotations

from tests.support.database import Database
from tests.support.ticking import Checkpoint, Child, Move, TickingWorker
from zart.model import StoredStatus, Verb

MOST = 10_000


async def end_all(
    database: Database,
    *,
    status: StoredStatus = StoredStatus.COMPLETED,
    output: bytes | None = b"null",
    error: bytes | None = None,
) -> int:
    """Claim everything that is ready and end it alike; gives back how many there were."""
    ended = 0
    connection = await database.connect()
    for bucket in range(database.buckets):
        worker = await ready_worker(database, bucket)
        claims = await worker.claim(MOST)
        moves = [
            Move(claim.id, claim.epoch, Verb.FINISH, status=status, output=output, error=error) for claim in claims
        ]
        ended += len((await worker.tick(moves=moves)).applied)
        await worker.connection.close()
    await connection.close()
    return ended


async def ready_worker(database: Database, bucket: int) -> TickingWorker:
    """A registered worker for all lanes of a bucket; the caller closes its connection."""
    connection = await database.connect()
    lanes = [row["lane"] for row in await connection.fetch(f"select lane from {database.schema}.zart_lanes")]
    worker = TickingWorker(connection, database.schema, bucket, lanes)
    await worker.register()
    return worker


__all__ = ["Checkpoint", "Child", "Move", "end_all", "ready_worker"]
