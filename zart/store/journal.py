"""The journal as others see it: read as a history, added to by events, followed by wake-ups."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zart.model import AttemptRecord, EventAnswer, Kind, Outcome, StepRecord, StoredStatus
from zart.names import FAILURE_PREFIX
from zart.postgres.connection import Connection
from zart.store.statements import statement

RETRYING = "retrying"
WAITING = "waiting"

# Rows of these kinds are written when the operation begins; all others when it has ended.
_REGISTRATIONS = frozenset({Kind.SLEEP, Kind.WAIT, Kind.GROUP})


@dataclass(frozen=True, slots=True)
class Offered:
    """What became of an event; `answer` None: there is no such execution. `worker` holds the execution, if any does."""

    answer: EventAnswer | None
    worker: int | None


async def history(connection: Connection, schema: str, bucket: int, execution_id: str) -> list[StepRecord] | None:
    """The present run's journal in the order it was written; None if there is no such execution.

    A step that failed and is to be tried again has the status `retrying`; a sleep that is not over, and an event that
    has not come, `waiting`.
    """
    rows = await connection.fetch(statement("history", schema), bucket, execution_id)
    return records_of(rows) if rows else None


def records_of(rows: Sequence[Any]) -> list[StepRecord]:
    """Records of rows as the statement `history` gives them, in the same order; failed tries go with their steps."""
    failed: defaultdict[int, list[Any]] = defaultdict(list)
    for row in rows:
        if row["kind"] is None and row["step_key"] is not None:
            failed[row["step_key"]].append(row)
    # A failure handler waits in its own name, for the same events. It waits after the body.
    waited = {row["name"].removeprefix(FAILURE_PREFIX): row for row in rows if row["kind"] == Kind.WAIT}
    came = {row["name"] for row in rows if row["kind"] == Kind.EVENT}
    steps = [
        _step(row, failed.pop(row["step_key"], []), waited.get(row["name"]) if row["kind"] == Kind.EVENT else None)
        for row in rows
        if row["kind"] is not None
        and not (row["kind"] == Kind.WAIT and row["name"].removeprefix(FAILURE_PREFIX) in came)
    ]
    return steps + [_retrying(tries) for tries in failed.values()]


async def offer_event(
    connection: Connection,
    schema: str,
    bucket: int,
    execution_id: str,
    key: int,
    name: str,
    payload: str,
    token: int | None = None,
) -> Offered:
    """Keep an event for an execution; the first one of a key wins, a timeout included.

    Args:
        key: step key of the name in KeySpace.EVENT.
        payload: JSON text.
        token: of the call, if it may be sent again.
    """
    row = await connection.fetchrow(statement("offer_event", schema), bucket, execution_id, key, name, payload, token)
    assert row is not None
    answer = None if row["answer"] == "unknown" else EventAnswer(row["answer"])
    return Offered(answer, row["worker"])


async def deliver_signals(connection: Connection, schema: str, bucket: int) -> tuple[int, int]:
    """Bring wake-ups into parents whose rows were locked: (seen, delivered). Call again while any is seen."""
    row = await connection.fetchrow(statement("deliver_signals", schema), bucket)
    assert row is not None
    return row["seen"], row["delivered"]


def _step(row: Any, tries: Sequence[Any], waited: Any) -> StepRecord:
    """A journal row as a record. `waited`: since when and until when the body waited for the event that it is."""
    kind = Kind(row["kind"])
    began = next((each["began_at"] for each in tries), row["began_at"])
    ended = kind not in _REGISTRATIONS
    if waited is not None:
        began = min(waited["created_at"], row["created_at"])
    return StepRecord(
        name=row["name"],
        kind=(Kind.EVENT if kind is Kind.WAIT else kind).name.lower(),
        status=WAITING if kind is Kind.WAIT or (kind is Kind.SLEEP and row["ahead"]) else _status(kind, row["status"]),
        result=_plain(row["result"]),
        error=_plain(row["error"]),
        attempts=row["attempts"],
        started_at=began if ended else row["created_at"],
        finished_at=row["created_at"] if ended else None,
        due=row["due"] if waited is None else waited["due"],
        failed_attempts=tuple(_attempt(each) for each in tries),
    )


def _retrying(tries: Sequence[Any]) -> StepRecord:
    return StepRecord(
        name=tries[-1]["name"],
        kind=Kind.STEP.name.lower(),
        status=RETRYING,
        result=None,
        error=_plain(tries[-1]["error"]),
        attempts=tries[-1]["attempts"],
        started_at=tries[0]["began_at"],
        finished_at=None,
        due=tries[-1]["due"],
        failed_attempts=tuple(_attempt(each) for each in tries),
    )


def _attempt(row: Any) -> AttemptRecord:
    return AttemptRecord(row["attempts"], _plain(row["error"]), row["due"], row["created_at"])


def _status(kind: Kind, status: int) -> str:
    name = StoredStatus(status).name if kind is Kind.CHILD else Outcome(status).name
    return name.lower()


def _plain(text: str | None) -> Any:
    return None if text is None else json.loads(text)
