"""The records of executions: started, asked for, listed, cancelled, restarted, released."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from asyncpg import Record

from zart.errors import InvalidArgument, shown
from zart.model import ExecutionRecord, ExecutionStatus, Page, StoredStatus
from zart.postgres.connection import Connection
from zart.store.statements import statement

_NEWEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Started:
    """What `start` found or made under an id."""

    execution_id: str
    task_name: str
    created: bool


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What `cancel` did. `workers` held something that was cancelled and should hear of it soon."""

    what: Literal["cancelled", "already", "unknown"]
    workers: frozenset[int]


async def start(
    connection: Connection,
    schema: str,
    bucket: int,
    execution_ids: Sequence[str],
    inputs: Sequence[str],
    *,
    task_name: str,
    lane: int,
    priority: int,
    delay: float = 0.0,
    max_retries: int = 0,
    timeout: float | None = None,
    traceparent: str | None = None,
    token: int | None = None,
) -> list[Started]:
    """Start executions of one task, all of one bucket, in one statement.

    Args:
        execution_ids, inputs: by column; inputs as JSON text.
        delay: seconds before they may run.
        timeout: seconds from the end of the delay to their deadline.
        token: of the call, if it may be sent again: what it made is told as made, however often it was sent.

    Returns:
        Those that existed before; and when a single id was given, always one row for it. An id given twice counts once.
    """
    rows = await connection.fetch(
        statement("start", schema),
        bucket,
        execution_ids,
        inputs,
        task_name,
        lane,
        priority,
        delay,
        max_retries,
        timeout,
        traceparent,
        token,
    )
    return [Started(row["execution_id"], row["task_name"], row["created"]) for row in rows]


async def status(connection: Connection, schema: str, bucket: int, execution_id: str) -> ExecutionRecord | None:
    """One execution, None if there is none of this id."""
    row = await connection.fetchrow(statement("status", schema), bucket, execution_id)
    return None if row is None else _record(row)


async def waited_for(connection: Connection, schema: str, bucket: int, execution_ids: Sequence[str]) -> list[Record]:
    """Those that have ended: execution_id, task_name, status (StoredStatus), run, output and error (JSON text)."""
    return await connection.fetch(statement("waited_for", schema), bucket, execution_ids)


async def existing(connection: Connection, schema: str, bucket: int, execution_ids: Sequence[str]) -> set[str]:
    """Those of the ids that executions have, ended or not."""
    return {row[0] for row in await connection.fetch(statement("existing", schema), bucket, execution_ids)}


async def cancel(
    connection: Connection, schema: str, bucket: int, execution_id: str, token: int | None = None
) -> Cancellation:
    """End an execution and its unfinished children as cancelled. Waits for the ticks that hold them.

    Args:
        token: of the call, if it may be sent again.
    """
    rows = await connection.fetch(statement("cancel", schema), bucket, execution_id, token)
    workers = frozenset(row["worker"] for row in rows if row["worker"] is not None)
    return Cancellation(rows[0]["what"], workers)


async def restart(
    connection: Connection, schema: str, bucket: int, execution_id: str, token: int | None = None
) -> bool:
    """Begin a finished execution again as its next run. False: there is none of this id, or it is not finished.

    Args:
        token: of the call, if it may be sent again: it begins one run, however often it was sent.
    """
    return await connection.fetchval(statement("restart", schema), bucket, execution_id, token) is not None


@dataclass(frozen=True, slots=True)
class Release:
    """What `release` did. Of `told`, `root` is the execution at the top of the tree."""

    what: Literal["released", "refused", "told", "unknown"]
    root: str


async def release(
    connection: Connection, schema: str, bucket: int, execution_id: str, token: int | None = None
) -> Release:
    """Take an execution out of quarantine: its run goes on. Waits for the ticks that hold its children.

    Args:
        token: of the call, if it may be sent again.
    """
    row = await connection.fetchrow(statement("release", schema), bucket, execution_id, token)
    assert row is not None
    return Release(row["what"], row["execution_id"])


async def list_executions(
    connection: Connection,
    schema: str,
    buckets: Sequence[int],
    *,
    status: ExecutionStatus | None = None,
    task_name: str | None = None,
    queue: str | None = None,
    parent: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Page[ExecutionRecord]:
    """Executions, newest first; children only those of `parent`, when it is given.

    Raises:
        InvalidArgument: `limit` is not from 1 to 10,000, or `after` is no page's.
    """
    if type(limit) is not int or not 1 <= limit <= 10_000:
        raise InvalidArgument(f"limit must be a whole number from 1 to 10,000, got {shown(limit)}")
    if after is not None and not (type(after) is str and after.isascii() and after.isdigit() and len(after) < 19):
        raise InvalidArgument(f"after must be what an earlier page gave as `after`, got {shown(after)}")
    below = _NEWEST if after is None else int(after)
    arguments: list[Any] = [buckets, None, task_name, queue, created_after, created_before, below, limit + 1]
    if parent is not None:
        name = "list_children"
        arguments[1] = None if status is None else status.value
        arguments.append(parent)
    elif status is not None and not status.is_terminal:
        name = "list_live_executions"
        arguments[1] = status.value
    else:
        name = "list_executions"
        arguments[1] = None if status is None else StoredStatus[status.name].value
    rows = await connection.fetch(statement(name, schema), *arguments)
    return Page(
        items=tuple(_record(row) for row in rows[:limit]),
        after=str(rows[limit - 1]["id"]) if len(rows) > limit else None,
    )


async def count_by_status(connection: Connection, schema: str, buckets: Sequence[int]) -> dict[ExecutionStatus, int]:
    """How many executions there are of each status, children included. Reads every record."""
    rows = await connection.fetch(statement("count_by_status", schema), buckets)
    return {ExecutionStatus(row["status"]): row["executions"] for row in rows}


def _record(row: Record) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id=row["execution_id"],
        task_name=row["task_name"],
        status=_status(row),
        run=row["run"],
        queue=row["queue"],
        priority=row["priority"],
        input=_plain(row["input"]),
        output=_plain(row["output"]),
        error=_plain(row["error"]),
        attempt=row["attempt"],
        max_retries=row["max_retries"],
        crashes=row["crashes"],
        deadline=row["deadline"],
        parent=row["parent_execution_id"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _status(row: Record) -> ExecutionStatus:
    """`running` and `waiting` are not stored: the queue row tells."""
    if row["status"] != StoredStatus.LIVE:
        return ExecutionStatus[StoredStatus(row["status"]).name]
    if row["held"]:
        return ExecutionStatus.RUNNING
    return ExecutionStatus.WAITING if row["waiting"] else ExecutionStatus.PENDING


def _plain(text: str | None) -> Any:
    """JSON text as plain values. The standard parser keeps integers of any size."""
    return None if text is None else json.loads(text)
