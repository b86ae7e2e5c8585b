"""What PostgreSQL would keep of one run, in memory, with the rules of its statements (`zart/store/sql`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from zart.codec import step_key
from zart.engine.handler import FAILURE_KEY
from zart.engine.replay import Checkpoint, History, histories_of
from zart.model import EventAnswer, KeySpace, Kind, Outcome, StepRecord
from zart.names import FAILURE_PREFIX
from zart.store.journal import records_of


@dataclass(slots=True)
class Clock:
    """A run's own clock. It stands still while code runs, and is moved to when the next thing is due.

    Attributes:
        start: what it showed when the run was made.
        now: seconds since then.
    """

    start: datetime = field(default_factory=lambda: datetime.now(UTC))
    now: float = 0.0

    def at(self, seconds: float) -> datetime:
        """The moment so many seconds after the start."""
        return self.start + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the journal, or a failed try. `due` and `created` are times of the run's clock."""

    key: int
    kind: int
    status: int
    attempts: int
    name: str
    result: str | None
    error: str | None
    due: float | None
    seconds: float
    created: float
    epoch: int

    def checkpoint(self, now: float) -> Checkpoint:
        due_in = None if self.due is None else self.due - now
        return Checkpoint(self.kind, self.status, self.name, self.attempts, self.result, self.error, due_in, self.epoch)


class Journal:
    """One run's journal, its failed tries and its count of wake-ups.

    Attributes:
        wakes: how many events came.
        done: of how many children the outcome is kept.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.wakes = self.done = 0
        self._rows: dict[int, Row] = {}
        self._tries: list[Row] = []

    # -- writing

    def keep(self, row: Row) -> Checkpoint | None:
        """Keep a row; None, or what stands there already."""
        if row.kind == Kind.ATTEMPT:
            self._tries.append(row)
            return None
        found = self._rows.setdefault(row.key, row)
        return None if found is row else found.checkpoint(self.clock.now)

    def offer(self, name: str, payload: str) -> EventAnswer:
        """Keep an event, unless there is one, or the wait for it has timed out."""
        key, now = step_key(KeySpace.EVENT, name), self.clock.now
        event = Row(key, Kind.EVENT, Outcome.COMPLETED, 1, name, payload, None, None, 0.0, now, 0)
        if self.keep(event) is not None:
            return EventAnswer.ALREADY_OFFERED
        self.wakes += 1
        return EventAnswer.ACCEPTED

    def begin_retry(self) -> None:
        """An execution is retried: its failed steps become failed tries."""
        for row in list(self._rows.values()):
            if row.kind in (Kind.STEP, Kind.CHILD) and row.status != Outcome.COMPLETED:
                del self._rows[row.key]
                self.done -= row.kind == Kind.CHILD
                last = max((each.attempts for each in self._tries if each.key == row.key), default=0)
                self._tries.append(
                    replace(row, kind=Kind.ATTEMPT, attempts=max(row.attempts, last + 1), result=None, due=None)
                )

    # -- reading

    def history(self, epoch: int, loaded_at: float, unfinished: Iterable[int] = ()) -> History:
        """What a worker loads for its turn. `unfinished`: keys of the children that have not ended."""
        rows = [_loaded("counters", epoch=epoch, wakes=self.wakes, done=self.done, began_ago=self.clock.now)]
        rows[0]["traceparent"] = None
        rows += [_loaded("child", step_key=key) for key in unfinished]
        for what, kept in (("checkpoint", self._rows.values()), ("attempt", self._tries)):
            rows += [self._loaded(what, row) for row in kept]
        return histories_of(rows, loaded_at)[_ID]

    def checkpoints(self, keys: Iterable[int]) -> dict[int, Checkpoint]:
        """The rows that are there under these keys."""
        return {key: self._rows[key].checkpoint(self.clock.now) for key in keys if key in self._rows}

    def has(self, key: int) -> bool:
        return key in self._rows

    def dues(self) -> Iterable[float]:
        """When sleeps, waits and delays end, those included that are over."""
        return (row.due for row in (*self._rows.values(), *self._tries) if row.due is not None)

    def awaited_events(self) -> list[str]:
        """Names of the events that were waited for and have neither come nor timed out."""
        # Once it runs, only the failure handler waits, in its own name.
        prefix = FAILURE_PREFIX if self.has(FAILURE_KEY) else ""
        waits = [row.name for row in self._rows.values() if row.kind == Kind.WAIT and row.name.startswith(prefix)]
        names = [name.removeprefix(prefix) for name in waits]
        return [name for name in names if not self.has(step_key(KeySpace.EVENT, name))]

    def records(self) -> list[StepRecord]:
        """The history as a scheduler gives it, in the order of writing."""
        tries = [self._told(row, None) for row in self._tries]
        return records_of([*(self._told(row, row.kind) for row in self._rows.values()), *tries])

    def _loaded(self, what: str, row: Row) -> dict[str, Any]:
        now = self.clock.now
        return _loaded(
            what,
            step_key=row.key,
            kind=row.kind,
            status=row.status,
            attempts=row.attempts,
            name=row.name,
            result=row.result,
            error=row.error,
            due_in=None if row.due is None else row.due - now,
            epoch=row.epoch,
            began_ago=now - row.created + row.seconds,
        )

    def _told(self, row: Row, kind: int | None) -> dict[str, Any]:
        return {
            "step_key": row.key,
            "kind": kind,
            "status": row.status,
            "attempts": row.attempts,
            "name": row.name,
            "result": row.result,
            "error": row.error,
            "due": None if row.due is None else self.clock.at(row.due),
            "began_at": self.clock.at(row.created - row.seconds),
            "created_at": self.clock.at(row.created),
            "ahead": row.due is not None and row.due > self.clock.now,
        }


_ID = 1


def _loaded(what: str, **columns: Any) -> dict[str, Any]:
    return {"id": _ID, "what": what, **columns}
