"""Group commit: gathers what turns want stored and sends it in ticks, one at a time, on the held connection.

There is no timer: while a tick is in flight, bodies go on and fill the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns, perf_counter
from typing import Any

from zart.engine.batch import Batch, CheckpointRow, ChildRow, VerbRow
from zart.engine.life import TurnLife
from zart.engine.replay import Checkpoint
from zart.engine.session import Session
from zart.meters import TICK_DURATION, TICK_ROWS, TICKS
from zart.metrics import Place
from zart.model import Verb
from zart.postgres.connection import STATEMENT_TIMEOUT
from zart.store.statements import statement

log = logging.getLogger("zart.engine")


BUSY_PAUSE, LONGEST_BUSY_PAUSE = 0.02, 1.0
LARGE = 64 * 1024

# A tick that only claims is often the first word after idleness, on a link that has died meanwhile.
CLAIM_TIMEOUT = 3.0
# After one without an answer the next may take twice as long, up to this: else a slow server never gets to commit it.
LONGEST_TIMEOUT = 60.0

# Past the Python function that a named tuple's own __new__ is: half the time.
_new_row: Callable[[type[CheckpointRow], tuple[Any, ...]], CheckpointRow]
_new_row = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that a tick made."""

    id: int
    run: int
    epoch: int
    wakes: int
    done: int
    crashes: int
    waited: float
    lane: int


@dataclass(slots=True)
class TickAnswer:
    """What a tick said.

    Attributes:
        fenced: this identity was taken over and nothing was written.
        woken: executions held here of which a child has ended.
        risen: how many may go on: parked ones whose children have ended, failed ones that have a handler.
    """

    fenced: bool = False
    lease_live: bool = True
    lease_left_ns: int = 0
    checkpointed: int = 0
    applied: int = 0
    applied_ids: list[int] | None = None
    signals_left: int = 0
    risen: int = 0
    woken: list[int] = field(default_factory=list[int])
    claims: list[Claimed] = field(default_factory=list[Claimed])


class Ticker:
    """The rows that wait for a tick, and the sending of one.

    Args:
        session: the connection and identity.
        place: where ticks are counted.
        kick: called when there is something to send.
    """

    def __init__(self, session: Session, place: Place, kick: Callable[[], None]) -> None:
        self._session, self._place, self._kick = session, place, kick
        self._sql = statement("tick", session.schema)
        self._waiting: dict[int, Batch] = {}
        self._slowness = 1  # doubled by each tick in a row that had no answer in time
        self._loop = asyncio.get_running_loop()

    # -- gathering

    def checkpoint(
        self,
        turn: TurnLife,
        key: int,
        kind: int,
        status: int,
        attempts: int,
        due: float | None,
        seconds: float,
        name: str,
        result: bytes | None,
        error: bytes | None,
    ) -> asyncio.Future[Checkpoint | None]:
        """RowSink.checkpoint."""
        future: asyncio.Future[Checkpoint | None] = self._loop.create_future()
        batch = self.waiting_for(turn.bucket)
        batch.checkpoints.append(
            _new_row(
                CheckpointRow,
                (turn, future, turn.id, turn.epoch, key, kind, status, attempts, due, seconds, name, result, error),
            )
        )
        batch.bytes += len(result or error or b"")
        self._kick()
        return future

    def end(
        self,
        turn: TurnLife,
        verb: Verb,
        *,
        seen: int | None = None,
        done_at: int | None = None,
        due: float | None = None,
        status: int = 0,
        output: bytes | None = None,
        error: bytes | None = None,
    ) -> None:
        """RowSink.end."""
        due_at = None if due is None else self._loop.time() + due
        batch = self.waiting_for(turn.bucket)
        batch.verbs.append(VerbRow(turn, turn.id, turn.epoch, verb, seen, done_at, due_at, status, output, error))
        batch.bytes += len(output or error or b"")
        self._kick()

    def make_children(self, turn: TurnLife, children: tuple[ChildRow, ...]) -> asyncio.Future[Checkpoint | None]:
        """Make children of a held execution; all of them, or none if its claim is gone."""
        future: asyncio.Future[Checkpoint | None] = self._loop.create_future()
        row = VerbRow(turn, turn.id, turn.epoch, Verb.HOLD, children=children, stored=future)
        self.waiting_for(turn.bucket).add_verb(row)
        self._kick()
        return future

    def waiting_for(self, bucket: int) -> Batch:
        """The rows of a bucket that wait for a tick."""
        batch = self._waiting.get(bucket)
        if batch is None:
            batch = self._waiting[bucket] = Batch(bucket)
        return batch

    def put_back(self, batch: Batch) -> None:
        """Send these rows again; those whose turn was dropped meanwhile are left out."""
        waiting = self.waiting_for(batch.bucket)
        for row in batch.checkpoints:
            if not row.stored.done() and not row.turn.is_lost():
                waiting.add_checkpoint(row)
                row.turn.keep_late(row.stored)  # others may have gone before it
        for verb in batch.verbs:
            if not verb.turn.is_lost():
                waiting.add_verb(verb)
        self._kick()

    def put_back_later(self, batch: Batch) -> None:
        """Send these again after a moment: somebody else holds their rows, and need not be asked all the time."""
        for row in batch.checkpoints:
            row.turn.keep_late(row.stored)
        self._loop.call_later(BUSY_PAUSE, self.put_back, batch)

    def put_back_busy(self, row: VerbRow) -> None:
        """As `put_back_later`. A large one waits longer each time: everybody's ticks would carry it again and again."""
        pause = BUSY_PAUSE if row.size() < LARGE else min(BUSY_PAUSE * 2 ** min(row.busy, 6), LONGEST_BUSY_PAUSE)
        again = Batch(row.turn.bucket, [], [row._replace(busy=row.busy + 1)])
        self._loop.call_later(pause, self.put_back, again)

    def patience(self, timeout: float) -> float:
        """Seconds that a statement may take for which `timeout` is enough on a server that is not slow."""
        return min(self._slowness * timeout, LONGEST_TIMEOUT)

    def is_out_of_time(self) -> bool:
        """A tick had no answer in time: the next one may take twice as long. True for the first such in a row."""
        self._slowness *= 2
        return self._slowness == 2

    def forget(self) -> None:
        """Drop all that waits."""
        self._waiting.clear()

    def take(self, bucket: int) -> Batch:
        """Take out what the next tick of this bucket carries."""
        waiting = self.waiting_for(bucket)
        taken = waiting.split()
        for row in waiting.checkpoints:  # smaller ones that came later may go before them
            row.turn.keep_late(row.stored)
        return taken

    def buckets_waiting(self) -> list[int]:
        """Buckets with rows to send."""
        return [bucket for bucket, batch in self._waiting.items() if len(batch)]

    # -- sending

    async def send(self, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
        """One tick, one round trip. Errors are the driver's; what they mean is `resolve`'s business."""
        began = perf_counter()
        columns = batch.columns(self._loop.time())
        rows: list[Any] = await self._session.connection.fetch(
            self._sql,
            batch.bucket,
            self._session.worker_id,
            *columns,
            lanes,
            limit,
            timeout=self.patience(STATEMENT_TIMEOUT if len(batch) else CLAIM_TIMEOUT),
        )
        self._slowness = 1
        place = self._place
        place.observe(TICK_DURATION, perf_counter() - began)
        place.last_tick_ns = monotonic_ns()
        place.words[TICKS] += 1
        place.observe(TICK_ROWS, len(batch))
        return _read(rows)


def _read(rows: list[Any]) -> TickAnswer:
    answer = TickAnswer(fenced=True)
    for row in rows:
        what = row[0]
        if what == "claim":
            answer.claims.append(Claimed(row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]))
        elif what == "fence":
            answer.fenced, answer.lease_live, answer.lease_left_ns = False, row[8] > 0, row[8] * 1_000_000
        elif what == "checkpointed":
            answer.checkpointed = row[8]
        elif what == "applied":
            answer.applied, answer.applied_ids = row[8], row[9]
        elif what == "later":
            answer.signals_left += row[8]
        elif what == "risen":
            answer.risen += row[8]
        elif what == "wake":
            answer.woken = row[9]
    return answer
