"""One worker process: claims executions, runs their bodies, sends what they want stored. Reads in the order of life.

open -> [ claim and commit in one tick -> load what was claimed -> run bodies ] ... -> drain -> close
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic_ns
from typing import Any

import asyncpg

from zart.config import WorkerConfig
from zart.engine.batch import Batch, ChildRow, parts_of
from zart.engine.children import Child
from zart.engine.load import Loader, size_of
from zart.engine.polling import is_worth_a_claim
from zart.engine.replay import Checkpoint, checkpoint_of
from zart.engine.resolve import Resolver
from zart.engine.session import Held, Session
from zart.engine.signals import Stop
from zart.engine.spec import DurableSpec
from zart.engine.tasks import follow_tasks, leave_tasks
from zart.engine.ticker import BUSY_PAUSE, CLAIM_TIMEOUT, TickAnswer, Ticker
from zart.engine.transactions import Transactions
from zart.engine.turn import Turn
from zart.errors import DatabaseError
from zart.meters import (
    BYTES_READ,
    CLAIM_BATCH_SIZE,
    CLAIM_LATENCY,
    EXECUTIONS_CLAIMED,
    EXECUTIONS_RESUMED,
    LOOP_LAG,
)
from zart.metrics import ALONE, ASKED, Place
from zart.model import Verb
from zart.postgres.connection import check_not_demoted
from zart.postgres.sqlstate import Fault, classify
from zart.store import journal, queue, workers

log = logging.getLogger("zart.engine")

BEAT = 0.1
BRIEFLY_NS = 100_000_000  # what a look has seen holds for at least so long; a tick tells what is left of the lease
ASK_EVERY = 0.02  # a worker that ticks anyway
LOOK_EVERY = 2  # beats; every one when bodies wait
ALWAYS = -1  # a number of wake-ups that never is
LOOK_AT_TURNS_OLDER_THAN = 0.5
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
        self.sure_until: list[int] = []
        self._trust = round(config.lease_seconds / 2 * 1e9)
        self._doubts: list[asyncio.Future[None]] = []
        self._questions: list[asyncio.Future[datetime]] = []
        self._sleeper: asyncio.Future[None] | None = None
        self._hungry: set[int] = set()
        self._asked: dict[int, float] = {}  # the loop's time of the last claim in a bucket
        self._alone: Turn | None = None
        self._lanes: list[int] = []
        self._served: dict[int, tuple[str, str]] = {}  # queue and task by lane
        self._tallies: dict[int, int] = {}  # by lane
        self._lane_numbers: dict[tuple[str, str], int] = {}
        self._unplaced: list[tuple[Turn, Sequence[tuple[Child, bytes]], asyncio.Future[Any]]] = []
        self._hints: set[int] = set()
        self._lanes_read_at = self._timeline_at = float("-inf")
        self._bucket = 0
        self._signals_left: set[int] = set()
        self._lease_due = False
        self._turn_about = self._woken = 0
        self._look_due = False
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
        self.sure_until = [0] * self._session.buckets
        self._running = True
        self.rows = Ticker(self._session, self.place, self._kick)
        self.transactions = Transactions(self._session, self.config, self._lose)
        self._resolver = Resolver(self._session, self.rows, self.turns, self._adopt, self.transactions.leave_server)
        self._loader = Loader(self._session, self.rows, self.registry, self._served, self.config, self._resolver.lose)
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
        between = self._questions or self._doubts or self._look_due or self._lease_due or self._signals_left
        waiting = self._loader.waiting or self._unplaced or self._hints or self._is_to_run_alone()
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
            await self._refresh_lanes()
        batch = self.rows.take(bucket)
        free = self._free_slots(batch) if asks else 0
        if free:
            self._asked[bucket] = self._loop.time()
        woken, asked = self._woken, monotonic_ns()
        answer = await self._resolver.commit(batch, self._lanes if free else [], free)
        if answer is None:
            return
        self.sure_until[bucket] = asked + min(answer.lease_left_ns, self._trust)
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
        await self._refresh_lanes()
        for bucket in range(self._session.buckets):
            if not self.turns:
                await self._claim_apart(bucket)

    def _accept(self, bucket: int, answer: TickAnswer, free: int) -> None:
        if free and not answer.lease_live:
            self._lease_due = True
        if answer.signals_left:
            self._signals_left.add(bucket)
        if any(self.turns[id].family.waits for id in answer.woken if id in self.turns):
            self._look_due = True
        if free:
            self.place.observe(CLAIM_BATCH_SIZE, len(answer.claims))
        for claim in answer.claims:
            self.place.observe(CLAIM_LATENCY, claim.waited)
            tally = self._count_claim(claim.lane, claim.epoch)
            self._hold(
                Turn(self, claim.id, claim.run, claim.epoch, bucket, claim.wakes, crashes=claim.crashes, tally=tally)
            )

    def _count_claim(self, lane: int, epoch: int) -> int:
        """Count a claim; what to add to the offsets of what is counted for its task."""
        lane, words = abs(lane), self.place.words
        tally = self._tallies.get(lane)
        if tally is None:
            tally = self._tallies[lane] = self.place.tally_of(self._served[lane][1])
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
        answer = await self._resolver.commit(Batch(bucket), [-lane for lane in self._lanes], 1)
        if answer is None:
            return
        self._accept(bucket, answer, 0)
        if answer.claims:
            self._alone = self.turns[answer.claims[0].id]
            self._alone.apart, self.place.alone = True, ALONE
            self.place.note_step("")

    def _lose(self, turn: Turn) -> None:
        self._resolver.lose(turn)

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

    async def _refresh_lanes(self) -> None:
        """Rotate the lanes; once per poll interval look for those that starts in queues unused before have made."""
        if self._loop.time() - self._lanes_read_at < self.config.poll_seconds:
            self._lanes = self._lanes[1:] + self._lanes[:1]
            return
        session, queues = self._session, self.config.queues
        if not self._lanes:
            pairs = [(spec.queue, spec.task_name) for spec in self.registry.values()]
            await queue.add_lanes(session.connection, session.schema, pairs)
        # Often the first word after idleness, on a link that has died meanwhile.
        served = await queue.lanes_served(
            session.connection, session.schema, session.task_names, queues, self.rows.patience(CLAIM_TIMEOUT)
        )
        self._lanes = list(served)
        self._served |= served
        self._lanes_read_at = self._loop.time()

    def serves(self, task_name: str) -> bool:
        """Host.serves."""
        return task_name in self.registry

    def make_children(self, turn: Turn, children: Sequence[tuple[Child, bytes]]) -> asyncio.Future[Any]:
        """Host.make_children."""
        if all(_lane_of(turn, child) in self._lane_numbers for child, _ in children):
            return self._send_children(turn, children)
        made: asyncio.Future[Any] = self._loop.create_future()
        self._unplaced.append((turn, children, made))
        self._kick()
        return made

    def _send_children(self, turn: Turn, children: Sequence[tuple[Child, bytes]]) -> asyncio.Future[Any]:
        rows = [
            ChildRow(
                child.key,
                child.spec.name,
                child.spec.task_name,
                self._lane_numbers[_lane_of(turn, child)],
                turn.priority if child.spec.priority is None else child.spec.priority,
                data,
                child.spec.max_retries,
                child.spec.timeout,
            )
            for child, data in children
        ]
        return asyncio.gather(*(self.rows.make_children(turn, part) for part in parts_of(rows)))

    async def _place_children(self) -> None:
        """Find the lanes of children whose queue and task were not seen here before."""
        session, unplaced = self._session, list(self._unplaced)  # others may come while the database is asked
        pairs = {_lane_of(turn, child) for turn, children, _ in unplaced for child, _ in children}
        self._lane_numbers |= await queue.add_lanes(session.connection, session.schema, pairs)
        self._lanes_read_at = float("-inf")
        self._unplaced = self._unplaced[len(unplaced) :]
        for turn, children, made in unplaced:
            if not made.done() and not turn.ended:
                self._send_children(turn, children).add_done_callback(functools.partial(_pass_on, made))

    async def make_sure(self, turn: Turn) -> None:
        """Host.make_sure. A process that stood still for a while asks before it begins anything."""
        while monotonic_ns() > self.sure_until[turn.bucket]:
            doubt: asyncio.Future[None] = self._loop.create_future()
            self._doubts.append(doubt)
            self._kick()
            await doubt

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
        if self._unplaced:
            await self._place_children()
        if self._hints:
            await self._send_hints()
        if self._questions:
            await self._tell_time()
        if self._lease_due:
            await self._renew_own_lease()
        if self._signals_left:
            await self._deliver_signals()
        if self._look_due or self._doubts:
            self._look_due = False
            await self._look()
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

    async def _look(self) -> None:
        """Waiting turns hear here of events, and those that have gone on for a while that they were cancelled."""
        before, doubts = self._loop.time() - LOOK_AT_TURNS_OLDER_THAN, self._doubts[:]
        for bucket in range(self._session.buckets):
            asked = monotonic_ns()
            turns = [
                turn
                for turn in self.turns.values()
                if turn.bucket == bucket
                and turn.main is not None
                and (doubts or turn.events or turn.family.waits or turn.began < before)
            ]
            if turns:
                await self._look_at(bucket, turns)
            if doubts:
                self.sure_until[bucket] = max(self.sure_until[bucket], asked + BRIEFLY_NS)
        del self._doubts[: len(doubts)]
        for doubt in doubts:
            if not doubt.done():
                doubt.set_result(None)

    async def _look_at(self, bucket: int, turns: Sequence[Turn]) -> None:
        session = self._session
        wakes = await queue.look(
            session.connection,
            session.schema,
            bucket,
            session.worker_id,
            [turn.id for turn in turns],
            [turn.epoch for turn in turns],
            [ALWAYS if turn.unread else turn.seen for turn in turns],
            [turn.family.awaited() for turn in turns],
        )
        self.place.last_tick_ns = monotonic_ns()
        told: list[tuple[Turn, int, list[int]]] = []
        for turn in turns:
            if turn.id not in wakes or turn.ended:
                continue
            count = wakes[turn.id]
            if count is None:
                self._resolver.lose(turn)
                self._hungry.add(bucket)  # a tick tells whether the identity is gone too
            elif keys := [*turn.events, *turn.family.unknown()]:
                told.append((turn, count, keys))
        if told:
            await self._read_awaited(bucket, told)

    async def _read_awaited(self, bucket: int, told: Sequence[tuple[Turn, int, list[int]]]) -> None:
        """Read what turns wait for, after their counters: so an event that comes in between is read again."""
        session = self._session
        asked = [(turn.id, turn.run, key) for turn, _, keys in told for key in keys]
        ids, runs, keys = (list(column) for column in zip(*asked, strict=True))
        found: dict[int, dict[int, Checkpoint]] = {}
        for row in await queue.read_checkpoints(session.connection, session.schema, bucket, ids, runs, keys):
            found.setdefault(row["id"], {})[row["step_key"]] = checkpoint_of(row)
            self.place.add(BYTES_READ, size_of(row["result"]) + size_of(row["error"]))
        for turn, count, looked_for in told:
            if not turn.ended:
                turn.hear(count, found.get(turn.id, {}), looked_for)

    def look_for_events(self) -> None:
        """Host.look_for_events."""
        self._look_due = True
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
                self._look_due = True
                self._kick()

    def _rest_waiting(self) -> bool:
        """Put down what has waited long enough; True when any waits. No name here outlives this and holds a turn."""
        waiting = [turn for turn in self.turns.values() if turn.waits]
        now = self._loop.time()
        for turn in waiting:
            turn.rest(now)
        return bool(waiting)


def _lane_of(turn: Turn, child: Child) -> tuple[str, str]:
    """Queue and task that a child is claimed by."""
    return turn.queue if child.spec.queue is None else child.spec.queue, child.spec.task_name


def _pass_on(made: asyncio.Future[Any], sent: asyncio.Future[Any]) -> None:
    if not made.done() and not sent.cancelled():
        made.set_result(None)
