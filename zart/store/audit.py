"""Reading everything back: every execution of one task with its checkpoints, for checks from outside of the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from zart.model import StoredStatus
from zart.postgres.connection import Connection
from zart.store.statements import statement

_PREFETCH = 1_000


@dataclass(frozen=True, slots=True)
class AuditedExecution:
    """One execution as the tables have it.

    Attributes:
        steps: name and JSON text of each checkpoint of its last run, by name.
        again_at: when a claim after the first one wrote something first, None if none did.
    """

    execution_id: str
    status: StoredStatus
    epoch: int
    output: str | None
    steps: tuple[tuple[str, str | None], ...]
    started_at: datetime | None
    finished_at: datetime | None
    again_at: datetime | None


async def audit_executions(
    connection: Connection, schema: str, bucket: int, task_name: str
) -> AsyncIterator[AuditedExecution]:
    """Every execution of a task, one snapshot for all."""
    async with connection.transaction(readonly=True):
        text = statement("audit_executions", schema)
        async for row in connection.cursor(text, bucket, task_name, prefetch=_PREFETCH):
            yield AuditedExecution(
                execution_id=row["execution_id"],
                status=StoredStatus(row["status"]),
                epoch=row["epoch"],
                output=row["output"],
                steps=tuple(zip(row["names"] or (), row["results"] or (), strict=True)),
                started_at=row["started_at"],
                finished_at=row["finished_at"],
                again_at=row["again_at"],
            )


async def count_unfinished(connection: Connection, schema: str, bucket: int) -> int:
    """How many executions have not ended."""
    count: int = await connection.fetchval(statement("count_unfinished", schema), bucket)
    return count
