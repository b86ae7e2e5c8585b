"""One worker process: claims executions, runs their bodies, sends what they want stored. Reads in the order of life.

open -> [ claim and commit in one tick -> load what was claimed -> run bodies ] ... -> drain -> close
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic_ns
from typing import Any

import asyncpg

from zart.config import WorkerConfig
from zart.engine.batch import Batch
from zart.engine.children import Child
from zart.engine.lanes import Lanes
from zart.engine.load import Loader
from zart.engine.look import Looker
from zart.engine.polling import is_worth_a_claim
from zart.engine.resolve import Resolver
from zart.engine.session import Held, Session
from zart.engine.signals import Stop
from zart.engine.spec import DurableSpec
from zart.engine.tasks import follow_tasks, leave_tasks
from zart.engine.ticker import BUSY_PAUSE, TickAnswer, Ticker
from zart.engine.transactions import Transactions
from zart.engine.turn import Turn
from zart.errors import DatabaseError
from zart.meters import (
    CLAIM_BATCH_SIZE,
    CLAIM_LATENCY,
    EXECUTIONS_CLAIMED,
    EXECUTIONS_RESUMED,
    LOOP_LAG,
)
from zart.metrics import ALONE, ASKED, LEFT, Place
from zart.model import Verb
from zart.postgres.connection import check_not_demoted
from zart.postgres.sqlstate import Fault, classify
from zart.store import journal, workers

log = logging.getLogger("zart.engine")

BEAT = 0.1
ASK_EVERY = 0.02  # a worker that ticks anyway
LOOK_EVERY = 2  # beats; every one when bodies wait
LAST_TICKS = 3.0


class WorkerLoop:
    """The engine of one worker. It never polls: `wake` tells it that there may be work.

    Args:
        dsn, schema: the database.
        registry: durable functions by task name; only these are claimed.
        config: slots, durations, limits.
        place: where it counts, and shows how it is.
        worker_id: its first identity.
        host: name shown to operators, the machine's own by default.
    """

    def __init__(
        self,
        *,
        dsn: str,
        schema: str,
        registry: Mapping[str, DurableSpec],
        config: WorkerConfig,
        place: Place,
        worker_id: int,
        host: str | None = None,
    ) -> None:
        self._opening: asyncio.Future[None] | None = None
        self.registry, self.config, self.place = registry, config, place
        self.attribution = place.attribution()
        self.max_result_bytes = config.max_result_bytes
        place.slots = config.max_concurrent_tasks
        self.turns: dict[int, Turn] = {}
        self._session = Session(
            dsn=dsn,
            schema=schema,
            config=config,
            place=place,
            worker_id=worker_id,
            task_names=sorted(registry),
            host=host,
        )
        self.sure_until: Sequence[int] = ()
        self._trust = round(config.lease_seconds / 2 * 1e9)
        self._questions: list[asyncio.Future[datetime]] = []
        self._sleeper: asyncio.Future[None] | None = None
        self._hungry: set[int] = set()
        self._asked: dict[int, float] = {}  # the loop's time of the last claim in a bucket
        self._alone: Turn | None = None
        self._tallies: dict[int, int] = {}  # by lane
        self._hints: set[int] = set()
        self._timeline_at = float("-inf")
        self._bucket = 0
        self._signals_left: set[int] = set()
        self._lease_due = False
        self._turn_about = self._woken = 0
        self._draining = self._running = self._over = False
        self._beats_per_poll = max(1, round(config.poll_seconds / BEAT))

    # -- open

    async def run(self) -> None:
        """Register, then work until `stop()` was called and everything is handed back or done.

        Raises:
            DatabaseError: the database cannot serve this worker.
        """
        self._loop = asyncio.get_running_loop()
        if not await self._open():
            return
        self._running = True
        self.rows = Ticker(self._session, self.place, self._kick)
        self.transactions = Transactions(self._session, self.config, self._lose)
        self._resolver = Resolver(self._session, self.rows, self.turns, self._adopt, self.transactions.leave_server)
        self._lanes = Lanes(self._session, self.rows, self.registry, self.config)
        self._loader = Loader(
            self._session, self.rows, self.registry, self._lanes.served, self.config, self._resolver.lose
        )
        self._looker = Looker(self._session, self.turns, self._notice_loss)
        self.sure_until = self._looker.sure_until
        self.wake()
        follow_tasks(self._loop)
        beat = self._loop.create_task(self._beat())
        self._working = self._loop.create_task(self._cycle())
        try:
            await self._working
        except asyncio.CancelledError:
            if not self._over:
                self._working.cancel()
                raise
        except asyncpg.PostgresError as error:
            await self._session.check_schema()
            raise DatabaseError(
                f"the database cannot run zart's statements ({type(error).__name__}: {error}); see `zart migrate`"
            ) from error
        finally:
            beat.cancel()
            if self._draining:
                self.place.loop_count = LEFT
            leave_tasks(self._loop)
            for turn in list(self.turns.values()):
                turn.lose()
            await self.transactions.close()
            await self._session.close()

    async def _open(self) -> bool:
        """Register, however long the database is away. False when it was told to stop meanwhile."""
        if self._draining:
            return False
        self._opening = asyncio.ensure_future(self._session.open())
        try:
            await self._opening
        except asyncio.CancelledError:
            if not self._draining:
                self._opening.cancel()
                raise
            return False
        return True

    def wake(self) -> None:
        """There may be work: look for it in every bucket."""
        self._woken += 1
        self._hungry.update(range(self._session.buckets))
        self._kick()

    def stop(self) -> None:
        """Claim nothing more, hand back what has not begun, let running steps end; then `run` returns."""
        if self._draining:
            return
        self._draining = True
        self.place.draining = 1
        for turn in list(self.turns.values()):
            turn.hand_back()
        if not self._running and self._opening is not None:
            self._opening.cancel()
        if self._running:
            last_ticks = min(LAST_TICKS, self.config.shutdown_seconds / 5)
            self._loop.call_later(self.config.shutdown_seconds - last_ticks, self._stop_now)
            self._loop.call_later(self.config.shutdown_seconds, self._give_up)
        self._kick()

    def _stop_now(self) -> None:
        for turn in list(self.turns.values()):
            turn.interrupt(Stop.HAND_BACK)

    def _give_up(self) -> None:
        """What cannot be handed back, its row being held or the database away, is freed as a dead worker's is."""
        self._over = True
        self._working.cancel()

    # -- work

    async def _cycle(self) -> None:
        while True:
            if not self._has_work():
                if self._draining and not self.turns:
                    return
                await self._sleep()
            await asyncio.sleep(0)  # whatever is ready to run goes into this tick
            try:
                if self._is_to_run_alone():
                    await self._run_alone()
                await self._tick()
                await self._loader.begin_all(draining=self._draining)
                await self._between_ticks()
                check_not_demoted(self._session.connection, "the database")
            except Exception as error:
                await self._recover(error)

    async def _recover(self, error: Exception) -> None:
        """After a failed statement between ticks: all of them may be sent again."""
        fault = classify(error)
        if fault is Fault.LOST:
            await self._resolver.renew(Batch(0), error)
        elif fault is Fault.RETRY:
            await asyncio.sleep(BEAT)
        else:
            raise error

    def _has_work(self) -> bool:
        if self._alone is not None and self.turns.get(self._alone.id) is not self._alone:
            self._alone, self.place.alone = None, 0
        between = self._questions or self._looker.is_wanted() or self._lease_due or self._signals_left
        waiting = self._loader.waiting or self._lanes.has_unplaced() or self._hints or self._is_to_run_alone()
        return bool(between or waiting or self.rows.buckets_waiting() or self._wanted_bucket() is not None)

    def _is_to_run_alone(self) -> bool:
        return self.place.alone == ASKED and not self.turns and not self._draining

    async def _sleep(self) -> None:
        self._sleeper = self._loop.create_future()
        self.place.idle = int(not self.turns)
        try:
            await self._sleeper
        finally:
            self._sleeper = None
            self.place.idle = 0

    def _kick(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def _tick(self) -> None:
        """One tick of one bucket: what waits there, and claims for the slots that are or become free."""
        waiting, wanted = self.rows.buckets_waiting(), self._wanted_bucket()
        if wanted is None and not waiting:
            return
        bucket = self._next_bucket(waiting, wanted)
        # Nobody wakes a worker that ticks: it looks for work by itself.
        asks = bucket in self._hungry or self._loop.time() - self._asked.get(bucket, 0.0) >= ASK_EVERY
        if asks:
            await self._lanes.refresh()
        batch = self.rows.take(bucket)
        free = self._free_slots(batch) if asks else 0
        if free:
            self._asked[bucket] = self._loop.time()
        woken, asked = self._woken, monotonic_ns()
        answer = await self._resolver.commit(batch, self._lanes.claimed if free else [], free)
        if answer is None:
            return
        self._looker.sure_until[bucket] = asked + min(answer.lease_left_ns, self._trust)
        if batch.children or answer.risen:
            self._rouse(bucket)
        elif free and len(answer.claims) == free:
            self._hungry.add(bucket)
        elif free and answer.lease_live and woken == self._woken:
            self._hungry.discard(bucket)
        self._accept(bucket, answer, free)

    async def _run_alone(self) -> None:
        """The supervisor has asked for it, and this worker is empty: take one execution that is set apart."""
        self.place.alone = 0  # it is asked again if there are more
        await self._lanes.refresh()
        for bucket in range(self._session.buckets):
            if not self.turns:
                await self._claim_apart(bucket)

    def _accept(self, bucket: int, answer: TickAnswer, free: int) -> None:
        if free and not answer.lease_live:
            self._lease_due = True
        if answer.signals_left:
            self._signals_left.add(bucket)
        if any(self.turns[id].family.waits for id in answer.woken if id in self.turns):
            self._looker.due = True
        if free:
            self.place.observe(CLAIM_BATCH_SIZE, len(answer.claims))
        self.place.observe_all(CLAIM_LATENCY, [claim.waited for claim in answer.claims])
        for claim in answer.claims:
            tally = self._count_claim(claim.lane, claim.epoch)
            self._hold(
                Turn(self, claim.id, claim.run, claim.epoch, bucket, claim.wakes, crashes=claim.crashes, tally=tally)
            )

    def _count_claim(self, lane: int, epoch: int) -> int:
        """Count a claim; what to add to the offsets of what is counted for its task."""
        lane, words = abs(lane), self.place.words
        tally = self._tallies.get(lane)
        if tally is None:
            tally = self._tallies[lane] = self.place.tally_of(self._lanes.served[lane][1])
        words[tally + EXECUTIONS_CLAIMED] += 1
        if epoch > 1:
            words[tally + EXECUTIONS_RESUMED] += 1
        return tally

    def _rouse(self, bucket: int) -> None:
        """There is more work in a bucket, made here: claim of it, and tell idle workers."""
        self._hungry.add(bucket)
        self._hints.add(bucket)

    async def _claim_apart(self, bucket: int) -> None:
        """Executions set apart after a crash run only in a worker that holds nothing else, one at a time."""
        answer = await self._resolver.commit(Batch(bucket), [-lane for lane in self._lanes.claimed], 1)
        if answer is None:
            return
        self._accept(bucket, answer, 0)
        if answer.claims:
            self._alone = self.turns[answer.claims[0].id]
            self._alone.apart, self.place.alone = True, ALONE
            self.place.note_step("")

    def _lose(self, turn: Turn) -> None:
        self._resolver.lose(turn)

    def _notice_loss(self, turn: Turn) -> None:
        """A look found a claim gone."""
        self._resolver.lose(turn)
        self._hungry.add(turn.bucket)  # a tick tells whether the identity is gone too

    def _hold(self, turn: Turn) -> None:
        before = self.turns.get(turn.id)
        if before is not None:
            self._resolver.lose(before)
        self.turns[turn.id] = turn
        self._loader.waiting.append(turn)

    def _adopt(self, claims: Sequence[Held]) -> None:
        """Claims that a tick without an answer made: run as resumed ones; but what is set apart is not run here."""
        for claim in claims:
            tally = self._count_claim(claim.lane, claim.epoch)
            turn = Turn(self, claim.id, claim.run, claim.epoch, claim.bucket, claim.wakes, adopted=True, tally=tally)
            if claim.apart:
                turn.close()
                self.turns[turn.id] = turn
                self.rows.end(turn, Verb.PUT_OFF, due=0.0)
            else:
                self._hold(turn)

    # -- where to claim

    def _free_slots(self, batch: Batch) -> int:
        """Slots worth a claim: not a few while many are busy, so that claims stay batched."""
        if self._draining or self._is_kept_empty():
            return 0
        slots = self.config.max_concurrent_tasks
        free = slots - len(self.turns) + batch.ending()
        return free if is_worth_a_claim(free, slots) else 0

    def _is_kept_empty(self) -> bool:
        """An execution that is set apart runs here alone, or is to when what is held has ended."""
        return self._alone is not None or (self.place.alone == ASKED and bool(self.turns))

    def _wanted_bucket(self) -> int | None:
        """A bucket to claim from: the last one for as long as it gives, then the next."""
        if not self._hungry or not self._free_slots(Batch(0)):
            return None
        if self._bucket not in self._hungry:
            self._bucket = min(self._hungry, key=lambda bucket: (bucket - self._bucket) % self._session.buckets)
        return self._bucket

    def _next_bucket(self, waiting: Sequence[int], wanted: int | None) -> int:
        if wanted is not None and (wanted in waiting or not waiting):
            return wanted
        self._turn_about = (self._turn_about + 1) % (len(waiting) + (wanted is not None))
        return waiting[self._turn_about] if self._turn_about < len(waiting) else wanted or 0

    def serves(self, task_name: str) -> bool:
        """Host.serves."""
        return task_name in self.registry

    def make_children(self, turn: Turn, children: Sequence[tuple[Child, bytes]]) -> asyncio.Future[Any]:
        """Host.make_children."""
        sent = self._lanes.send(turn, children)
        if sent is None:
            sent = self._lanes.send_when_placed(turn, children)
            self._kick()
        return sent

    async def make_sure(self, turn: Turn) -> None:
        """Host.make_sure. A process that stood still for a while asks before it begins anything."""
        while monotonic_ns() > self.sure_until[turn.bucket]:
            seen = self._looker.doubt()
            self._kick()
            await seen

    async def _send_hints(self) -> None:
        session, buckets = self._session, self._hints
        self._hints = set()
        for bucket in buckets:
            await workers.hint(session.connection, session.schema, bucket)

    async def database_time(self) -> datetime:
        """Host.database_time."""
        answer: asyncio.Future[datetime] = self._loop.create_future()
        self._questions.append(answer)
        self._kick()
        return await answer

    # -- between ticks

    async def _between_ticks(self) -> None:
        if self._lanes.has_unplaced():
            await self._lanes.place()
        if self._hints:
            await self._send_hints()
        if self._questions:
            await self._tell_time()
        if self._lease_due:
            await self._renew_own_lease()
        if self._signals_left:
            await self._deliver_signals()
        if self._looker.is_wanted():
            await self._looker.look()
        if self._session.connection.pooled and self._loop.time() >= self._timeline_at:
            self._timeline_at = self._loop.time() + self.config.poll_seconds
            await self._session.check_timeline()

    async def _tell_time(self) -> None:
        moment: datetime = await self._session.connection.fetchval("select clock_timestamp()")
        questions, self._questions = self._questions, []
        for question in questions:
            if not question.done():
                question.set_result(moment)

    async def _renew_own_lease(self) -> None:
        """Its supervisor is late: a worker whose loop runs may say so itself."""
        session, self._lease_due = self._session, False
        for bucket in range(session.buckets):
            await workers.renew_leases(
                session.connection, session.schema, bucket, [session.worker_id], self.config.lease_seconds
            )

    async def _deliver_signals(self) -> None:
        """A tick left word for parents that others held. Those still held are tried again after a moment."""
        session, buckets = self._session, self._signals_left
        self._signals_left = set()
        for bucket in buckets:
            seen, delivered = await journal.deliver_signals(session.connection, session.schema, bucket)
            if delivered:
                self._rouse(bucket)
            if seen > delivered:
                self._loop.call_later(BUSY_PAUSE, self._note_signals, bucket)

    def _note_signals(self, bucket: int) -> None:
        self._signals_left.add(bucket)
        self._kick()

    def look_for_events(self) -> None:
        """Host.look_for_events."""
        self._looker.due = True
        self._kick()

    @property
    def grace(self) -> float:
        """Host.grace. When slots are wanted, waiting bodies give theirs back at once."""
        if self.place.alone == ASKED:
            return 0.0
        slots = self.config.max_concurrent_tasks
        return self.config.grace_seconds if is_worth_a_claim(slots - len(self.turns), slots) else 0.0

    async def _beat(self) -> None:
        beats = 0
        while True:
            began = monotonic_ns()
            await asyncio.sleep(BEAT)
            self.place.observe(LOOP_LAG, (monotonic_ns() - began) / 1e9 - BEAT)
            beats += 1
            self.place.loop_count += 1
            self.place.held = len(self.turns)
            if self._draining and self._session.lost and not any(turn.is_running() for turn in self.turns.values()):
                self._give_up()
            if self.turns and self._session.buckets > 1 and beats % self._beats_per_poll == 0:
                self._hungry.update(range(self._session.buckets))  # it may tick in one of them only
                self._kick()
            if self._rest_waiting() or (self.turns and beats % LOOK_EVERY == 0):
                self._looker.due = True
                self._kick()

    def _rest_waiting(self) -> bool:
        """Put down what has waited long enough; True when any waits. No name here outlives this and holds a turn."""
        waiting = [turn for turn in self.turns.values() if turn.waits]
        now = self._loop.time()
        for turn in waiting:
            turn.rest(now)
        return bool(waiting)
