"""Makes every tick's outcome known: stored, refused, to be sent again, or lost. Rules R1, R2, R4 of the protocol.

answered, all counted     done
answered, some missing    read back who won, and whether the claim still stands
refused (a value)         halve the batch by execution until the guilty one is alone; only it fails
refused (others' doing)   nothing was written: send it again
no answer                 a fresh identity takes over the old one; its answer is the truth
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

import asyncpg

from zart.engine import failure
from zart.engine.batch import Batch, CheckpointRow, VerbRow
from zart.engine.life import TurnLife
from zart.engine.replay import checkpoint_of
from zart.engine.session import Held, Session
from zart.engine.ticker import TickAnswer, Ticker
from zart.engine.turn import Turn
from zart.log import fields
from zart.meters import (
    BYTES_WRITTEN,
    CLAIMS_LOST,
    DATABASE_ERRORS,
    EXECUTION_DURATION,
    EXECUTIONS_COMPLETED,
    EXECUTIONS_FAILED,
    EXECUTIONS_PARKED,
    EXECUTIONS_PUT_OFF,
    EXECUTIONS_RETRIED,
    STEP_DURATION,
    STEP_RETRIES,
    STEPS_COMPLETED,
    STEPS_FAILED,
)
from zart.model import Kind, Outcome, StoredStatus, Verb
from zart.postgres.sqlstate import Fault, classify, is_silence
from zart.store import queue

log = logging.getLogger("zart.engine")

FIRST_BACKOFF, LAST_BACKOFF = 0.01, 1.0
FAILURES_TOLD = 5  # a second

_TRIED = {(int(Kind.STEP), int(outcome)): STEPS_FAILED for outcome in Outcome} | {
    (int(Kind.STEP), int(Outcome.COMPLETED)): STEPS_COMPLETED,
    (int(Kind.ATTEMPT), 0): STEP_RETRIES,
}
_PUT_DOWN = {
    Verb.PARK: EXECUTIONS_PARKED,
    Verb.RETRY: EXECUTIONS_RETRIED,
    Verb.PUT_OFF: EXECUTIONS_PUT_OFF,
    Verb.HANDLE: EXECUTIONS_PUT_OFF,
}
# Of turns that have not finished their execution.
_OUTCOMES: dict[int, str] = {Verb.PARK: "parked", Verb.PUT_OFF: "put_off", Verb.RETRY: "retried", Verb.HANDLE: "failed"}


@dataclass(slots=True)
class Resolver:
    """Sends batches and settles what became of them.

    `turns` are the turns this worker holds, by id; `adopt` takes in claims that the database says are held here;
    `leave_server` ends other connections to a server that is of no use any more.
    """

    session: Session
    ticker: Ticker
    turns: dict[int, Turn]
    adopt: Callable[[Sequence[Held]], None]
    leave_server: Callable[[], Awaitable[None]]
    _failures: FailureLog = field(default_factory=lambda: FailureLog(), init=False)

    async def commit(self, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer | None:
        """Send one tick until its outcome is known; None when it was found out in another way than by its answer.

        Raises:
            asyncpg.PostgresError: the statement itself is wrong for this database; no retry would help.
        """
        backoff = FIRST_BACKOFF
        while True:
            try:
                answer = await self.ticker.send(batch, lanes, limit)
            except Exception as error:
                fault = self._note(error)
                if fault is Fault.BUG:
                    raise
                if fault is Fault.LOST:
                    await self.renew(batch, error)
                    return None
                if fault is Fault.DATA:
                    await self._halve(batch, error)
                    return None
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)
            else:
                return await self._take_answer(batch, answer)

    async def _take_answer(self, batch: Batch, answer: TickAnswer) -> TickAnswer | None:
        if answer.fenced:
            log.warning(
                "worker %d was taken over; all its turns are dropped", self.session.worker_id, extra=self._facts()
            )
            await self.renew(Batch(batch.bucket))
            return None
        try:
            await self._settle(batch, answer)
        except Exception as error:
            # The tick is committed and must not be sent again; whatever failed here, the fresh identity asks anew.
            if self._note(error) is Fault.BUG:
                raise
            await self.renew(batch, error)
            return None
        return answer

    async def renew(self, batch: Batch, error: Exception | None = None) -> None:
        """Find out what became of a tick without an answer, and of all claims, under a fresh identity.

        Args:
            error: how the connection was lost; None: it was not.
        """
        backoff = FIRST_BACKOFF
        if error is not None and is_silence(error):
            self.session.lost = True  # nothing may be committed on other connections from here on
            # A server that is only slow is not left again and again: steps' transactions would never come to an end.
            if not isinstance(error, TimeoutError) or self.ticker.is_out_of_time(batch.bucket):
                await self.leave_server()
        while True:
            log.warning("worker %d begins anew under another id", self.session.worker_id, extra=self._facts())
            held, same_history = await self.session.renew()
            if not same_history:
                await self._forget_all(held)
                return
            try:
                await self._compare(batch, held)
            except Exception as error:
                if self._note(error) is Fault.BUG:
                    raise
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)
            else:
                return

    # -- an answered tick

    async def _settle(self, batch: Batch, answer: TickAnswer) -> None:
        if answer.checkpointed == len(batch.checkpoints):
            self._stored(batch.checkpoints)
        else:
            await self._read_back(batch.bucket, batch.checkpoints, answered=True)
        if answer.applied == len(batch.verbs):
            self._applied(batch.verbs)
        else:
            await self._sort_verbs(batch, set(answer.applied_ids or ()))

    async def _sort_verbs(self, batch: Batch, applied: set[int]) -> None:
        """A verb that was not applied: its row was busy (send it again), or the claim is gone."""
        missed = [row for row in batch.verbs if row.id not in applied]
        held = await self._still_held(batch.bucket, missed)
        self._applied([row for row in batch.verbs if row.id in applied])
        for row in missed:
            if (row.id, row.epoch) in held:
                self.ticker.put_back_busy(row)
            else:
                self.lose(row.turn)

    async def _read_back(self, bucket: int, rows: Sequence[CheckpointRow], *, answered: bool) -> None:
        """Give each row the checkpoint that stands in its place; send again what is not stored."""
        rows = [row for row in rows if not row.stored.done()]
        held = await self._still_held(bucket, rows)
        found = {
            (stored["id"], stored["run"], stored["step_key"]): stored
            for stored in await queue.read_checkpoints(
                self.session.connection,
                self.session.schema,
                bucket,
                [row.id for row in rows],
                [row.turn.run for row in rows],
                [row.key for row in rows],
            )
        }
        again, kept = Batch(bucket), list[CheckpointRow]()
        for row in rows:
            stored = found.get((row.id, row.turn.run, row.key))
            if row.stored.done():
                continue
            if (row.id, row.epoch) not in held:
                self.lose(row.turn)
            elif row.kind == Kind.ATTEMPT and answered:
                kept.append(row)
            elif row.kind == Kind.ATTEMPT or stored is None:
                again.add_checkpoint(row)
            elif stored["epoch"] == row.epoch:
                kept.append(row)
            else:
                row.stored.set_result(checkpoint_of(stored))
        self._stored(kept)
        if answered:  # the row that an event's timeout needs is locked by an offer in an open transaction
            self.ticker.put_back_later(again)
        else:
            self.ticker.put_back(again)

    async def _still_held(self, bucket: int, rows: Sequence[CheckpointRow | VerbRow]) -> set[tuple[int, int]]:
        session = self.session
        return await queue.still_held(
            session.connection,
            session.schema,
            bucket,
            session.worker_id,
            [row.id for row in rows],
            [row.epoch for row in rows],
        )

    def _stored(self, rows: Sequence[CheckpointRow]) -> None:
        """These are committed as they are: count them, and let their turns go on."""
        tries: dict[tuple[int, int], list[float]] = {}
        written = 0
        for row in rows:
            written += len(row.result or row.error or b"")
            if not row.stored.done():
                row.stored.set_result(None)
            if counter := _TRIED.get((row.kind, row.status)):
                tries.setdefault((row.turn.tally, counter), []).append(row.seconds)
        for (tally, counter), seconds in tries.items():
            self.session.place.count_all(counter, STEP_DURATION, seconds, tally)
        self.session.place.add(BYTES_WRITTEN, written)

    def _applied(self, rows: Sequence[VerbRow]) -> None:
        """These are committed: count them, and let go of their turns."""
        place, now, written = self.session.place, monotonic(), 0
        ended: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            turn = row.turn
            written += row.size()
            if row.stored is not None and not row.stored.done():
                row.stored.set_result(None)
            if row.verb == Verb.HOLD or self.turns.get(row.id) is not turn:
                continue
            del self.turns[row.id]
            if turn.span is not None:
                turn.end_span(_outcome(row), None if row.error is None else failure.decode(row.error.decode()))
            if row.verb == Verb.FINISH:
                completed = row.status == StoredStatus.COMPLETED
                counter = EXECUTIONS_COMPLETED if completed else EXECUTIONS_FAILED
                ended.setdefault((turn.tally, counter), []).append(now - turn.born)
                if turn.took is not None:
                    counter = STEPS_COMPLETED if completed else STEPS_FAILED
                    place.count_all(counter, STEP_DURATION, [turn.took], turn.tally)
            else:
                place.words[turn.tally + _PUT_DOWN[Verb(row.verb)]] += 1
            if row.verb == Verb.HANDLE or (row.verb == Verb.FINISH and row.error is not None):
                self._failures.tell(row)
        for (tally, counter), seconds in ended.items():
            place.count_all(counter, EXECUTION_DURATION, seconds, tally)
        place.add(BYTES_WRITTEN, written)

    def lose(self, turn: TurnLife) -> None:
        """The claim is gone: cancelled, or taken over. Whatever the body still does is not recorded."""
        if self.turns.get(turn.id) is turn:
            del self.turns[turn.id]
            self.session.place.words[CLAIMS_LOST] += 1
        turn.lose()

    # -- a refused tick

    async def _halve(self, batch: Batch, error: Exception) -> None:
        turns = batch.turns()
        if len(turns) > 1:
            half = len(turns) // 2
            for part in (turns[:half], turns[half:]):
                await self.commit(batch.only(part), [], 0)
        elif turns and turns[0].refusal is None:
            turns[0].refuse(_refusal(batch, error))
        elif turns:  # not even the refusal is taken: somebody's trigger or constraint; not asked for all the time
            self.ticker.put_back_later(batch)

    # -- a tick without an answer

    async def _compare(self, batch: Batch, held: Sequence[Held]) -> None:
        """Sort every turn by what the database says of its claim."""
        mine = {(claim.id, claim.epoch) for claim in held}
        gone = [turn for turn in self.turns.values() if (turn.id, turn.epoch) not in mine]
        endings = {row.turn: row for row in batch.verbs if row.verb != Verb.HOLD}
        finished = await self._finished(batch.bucket, [endings[turn] for turn in gone if turn in endings])
        for turn in gone:
            ending = endings.get(turn)
            if ending is not None and (ending.verb != Verb.FINISH or turn.id in finished):
                self._applied([ending])
            else:
                self.lose(turn)
        await self._read_back(batch.bucket, batch.checkpoints, answered=False)
        self.ticker.put_back(
            Batch(batch.bucket, [], [row for row in batch.verbs if self.turns.get(row.id) is row.turn])
        )
        known = {(turn.id, turn.epoch) for turn in self.turns.values()}
        self.adopt([claim for claim in held if (claim.id, claim.epoch) not in known])

    async def _forget_all(self, held: Sequence[Held]) -> None:
        """The server's history is another one: what turns here know of may not be part of it. They begin anew."""
        log.warning(
            "another server has become the primary; all turns begin anew from what it has kept", extra=self._facts()
        )
        for turn in list(self.turns.values()):
            self.lose(turn)
        self.ticker.forget()
        await self.leave_server()
        self.adopt(held)

    async def _finished(self, bucket: int, endings: Sequence[VerbRow]) -> set[int]:
        """Executions whose stored ending is the one sent here: it carries this turn's epoch."""
        finish = {row.id: row for row in endings if row.verb == Verb.FINISH}
        if not finish:
            return set()
        rows = await queue.read_endings(self.session.connection, self.session.schema, bucket, list(finish))
        return {
            row["id"]
            for row in rows
            if row["status"] == finish[row["id"]].status
            and row["epoch"] == finish[row["id"]].epoch
            and row["run"] == finish[row["id"]].turn.run
        }

    def _note(self, error: Exception) -> Fault:
        self.session.place.add(DATABASE_ERRORS)
        fault = classify(error)
        state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else type(error).__name__
        log.warning("a tick failed (%s, %s)", fault.value, state, extra=fields(fault=fault.value, state=state))
        return fault

    def _facts(self) -> dict[str, object]:
        return {"worker_id": self.session.worker_id}


class FailureLog:
    """Tells of failed executions, a few a second: a fleet that fails is to be heard, and must not drown its log."""

    def __init__(self) -> None:
        self._second, self._told = 0, 0

    def tell(self, row: VerbRow) -> None:
        """Log how an execution failed."""
        second = int(monotonic())
        if second != self._second:
            if self._told > FAILURES_TOLD:
                log.warning("%d more executions failed", self._told - FAILURES_TOLD)
            self._second, self._told = second, 0
        self._told += 1
        if self._told <= FAILURES_TOLD:
            record = failure.decode((row.error or b"{}").decode())
            of_handler = record.get("on_failure")
            log.warning(
                "execution %s %s%s%s",
                row.turn.name(),
                _ending(record),
                f"; its on_failure failed too: {_told(of_handler)}" if of_handler else "",
                "; its on_failure runs next" if row.verb == Verb.HANDLE else "",
                extra=row.turn.facts()
                | fields(
                    step=record.get("step"), kind=record.get("kind"), error=record.get("type"), how=record.get("how")
                ),
            )


def _outcome(row: VerbRow) -> str:
    return _OUTCOMES.get(row.verb) or StoredStatus(row.status).name.lower()


def _ending(record: failure.Record) -> str:
    if record.get("kind") == "quarantined":
        return f"is quarantined: {record.get('message')}"
    return f"failed: {_told(record)}"


def _told(record: failure.Record) -> str:
    message, step = str(record.get("message"))[:300], record.get("step")
    return f"{record.get('type')}: {message}{f' (step {step!r})' if step and repr(step) not in message else ''}"


def _refusal(batch: Batch, error: Exception) -> dict[str, object]:
    """Which value was refused and why, without the driver's text: that may quote the value."""
    names = sorted({row.name for row in batch.checkpoints})
    children = [child.name for row in batch.verbs for child in row.children]
    if len(names) == 1 and not children:
        what = f"the result of step {names[0]!r}"
    elif names or children:
        what = f"a result of steps {names[:5]}" if names else f"the arguments of a child among {children[:5]}"
    else:
        what = "the execution's result"
    state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else "not encodable"
    remedy = "pass smaller or simpler values" if children and not names else "return a smaller or simpler value"
    return {
        "kind": "refused",
        "type": "SerializationError",
        "message": f"PostgreSQL refused {what} (SQLSTATE {state}); {remedy}",
        "step": names[0] if len(names) == 1 else None,
    }
