"""A worker for random bodies: it ticks, loses its connection, comes back, and resolves what is uncertain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NoReturn

import asyncpg

from tests.race.bodies import Lost, Turn
from tests.race.record import Race, Stored
from tests.support.database import Database
from tests.support.ticking import Answer, Checkpoint, Child, Claim, Move, TickingWorker
from zart.model import Kind, Verb
from zart.store import queue, workers

CAPACITY = 24
CUT = 0.01
"""Share of ticks whose connection is cut; half of the cuts are crashes."""

LOST = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)


@dataclass(slots=True, eq=False)
class Item:
    """Something a turn wants committed, and who waits for it."""

    turn: Turn
    row: Checkpoint | Move
    children: tuple[Child, ...]
    answer: asyncio.Future[Stored | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def lose(self) -> None:
        if not self.answer.done():
            self.answer.set_exception(Lost())

    def settle(self, stored: Stored | None = None) -> None:
        if not self.answer.done():
            self.answer.set_result(stored)


class StressWorker:
    """One worker of one bucket, until `stop`."""

    def __init__(self, race: Race, database: Database, bucket: int, lanes: Sequence[int], child_lane: int) -> None:
        self.race, self.database, self.bucket, self.child_lane = race, database, bucket, child_lane
        self.turns: dict[tuple[int, int], Turn] = {}
        self.stopping = False
        self._lanes = [*lanes, *(-lane for lane in lanes)]
        self._items: list[Item] = []
        self._kick = asyncio.Event()
        self._exchange = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> int:
        return self.worker.id

    def stop(self) -> None:
        self.stopping = True
        self._kick.set()

    async def run(self) -> None:
        await self._connect()
        await self.worker.register()
        while not self.stopping:
            await self._tick()

    # -- what turns ask for

    async def keep(self, turn: Turn, row: Checkpoint) -> Stored:
        stored = await self._send(Item(turn, row, ()))
        assert stored is not None
        return stored

    async def move(self, turn: Turn, row: Move, children: tuple[Child, ...] = ()) -> None:
        await self._send(Item(turn, row, children))

    async def load(self, turns: list[Turn]) -> None:
        async with self._exchange:
            by_id = {turn.claim.id: turn for turn in turns}
            rows = await queue.load_journal(
                *self._place(), list(by_id), [turn.claim.run for turn in turns], self.worker.id
            )
        for turn in turns:
            turn.history, turn.known_children = {}, 0
        for row in rows:
            turn = by_id[row["id"]]
            if row["what"] == "counters" and row["epoch"] == turn.claim.epoch:
                turn.wakes = row["wakes"]
            elif row["what"] == "checkpoint":
                turn.history[row["step_key"]] = _stored(row)
                turn.known_children += row["kind"] == Kind.CHILD and row["epoch"] == 0

    async def _send(self, item: Item) -> Stored | None:
        if item.turn.dead or (item.turn.claim.id, item.turn.claim.epoch) not in self.turns:
            raise Lost
        self._items.append(item)
        self._kick.set()
        return await item.answer

    # -- one tick

    async def _tick(self) -> None:
        if not self._items and len(self.turns) >= CAPACITY:
            self._kick.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kick.wait(), 0.05)
        await asyncio.sleep(0)
        items = self._take_items()
        claims: Iterable[Claim] = ()
        async with self._exchange:
            try:
                answer = await self._commit(items)
            except LOST:
                claims = await self._come_back(items)
            except asyncpg.DeadlockDetectedError:
                self.race.violation("deadlock in a tick")
                self._items += items
            else:
                claims = answer.claims
                await self._settle(items, answer)
        self._begin(claims)
        if not items and not claims:
            await asyncio.sleep(0.003)

    def _take_items(self) -> list[Item]:
        """All that wait; of each execution one verb at most."""
        taken: list[Item] = []
        left: list[Item] = []
        moved: set[int] = set()
        for item in self._items:
            if item.answer.done():
                continue
            later = isinstance(item.row, Move) and item.row.id in moved
            (left if later else taken).append(item)
            if isinstance(item.row, Move):
                moved.add(item.row.id)
        self._items = left
        return taken

    async def _commit(self, items: list[Item]) -> Answer:
        """Send the tick; now and then, cut its connection before or after it is answered."""
        self.race.counts["ticks"] += 1
        chance = self.race.chance
        lanes = chance.sample(self._lanes, len(self._lanes))
        sent = self.worker.tick(
            [item.row for item in items if isinstance(item.row, Checkpoint)],
            [item.row for item in items if isinstance(item.row, Move)],
            [child for item in items for child in item.children],
            claim=max(0, CAPACITY - len(self.turns)),
            lanes=lanes,
        )
        if chance.random() < CUT:
            await self._cut(sent, [0, 0, 0.0003, 0.001, 0.002, 0.004])
        return await sent

    async def _cut(self, sent: Coroutine[Any, Any, object], after: Sequence[float]) -> NoReturn:
        """Send something and cut the connection after some seconds, whether it is answered or not."""
        answer = asyncio.ensure_future(sent)
        await asyncio.sleep(self.race.chance.choice(after))
        self.worker.connection.terminate()
        await asyncio.wait([answer])
        answer.exception()
        raise ConnectionResetError

    async def _settle(self, items: list[Item], answer: Answer) -> None:
        if answer.fenced:
            self.race.counts["fenced"] += 1
            self.race.dead_workers.append((self.bucket, self.id))
            self._drop_all(items)
            self.worker.id = random.getrandbits(62)
            await self.worker.register()
            return
        checkpoints = [item for item in items if isinstance(item.row, Checkpoint)]
        if answer.checkpointed == len(checkpoints):
            for item in checkpoints:
                item.settle(_as_sent(item.row))
        else:
            await self._resolve(checkpoints)
        unapplied: list[Item] = []
        for item in items:
            if isinstance(item.row, Move) and item.row.id in answer.applied:
                self._applied(item)
            elif isinstance(item.row, Move):
                unapplied.append(item)
        await self._retry_or_lose(unapplied)
        for turn in self.turns.values():
            if turn.claim.id in answer.woken:
                turn.poked.set()

    def _applied(self, item: Item) -> None:
        if isinstance(item.row, Move) and item.row.verb is not Verb.HOLD:
            self.turns.pop((item.turn.claim.id, item.turn.claim.epoch), None)
        item.settle()

    async def _retry_or_lose(self, items: list[Item]) -> None:
        """A verb that was not applied: its row was busy, or the claim is gone."""
        held = await self._held(items)
        for item in items:
            if (item.turn.claim.id, item.turn.claim.epoch) in held:
                self.race.counts["busy, sent again"] += 1
                self._items.append(item)
            else:
                self.race.counts["claims lost"] += 1
                item.lose()
                self._drop(item.turn)

    async def _resolve(self, items: list[Item]) -> None:
        """Checkpoints of which some were not inserted: what is stored counts; what is not is sent again."""
        self.race.counts["resolved"] += 1
        held = await self._held(items)
        rows = await queue.read_checkpoints(
            *self._place(),
            [item.turn.claim.id for item in items],
            [item.turn.claim.run for item in items],
            [item.row.key for item in items if isinstance(item.row, Checkpoint)],
        )
        stored = {(row["id"], row["run"], row["step_key"]): row for row in rows}
        for item in items:
            assert isinstance(item.row, Checkpoint)
            claim = item.turn.claim
            row = stored.get((claim.id, claim.run, item.row.key))
            if (claim.id, claim.epoch) not in held:
                item.lose()
                self._drop(item.turn)
            elif row is not None:
                self.race.counts["own row found" if row["epoch"] == claim.epoch else "other's row found"] += 1
                item.settle(_stored(row))
            else:
                self._items.append(item)

    async def _held(self, items: list[Item]) -> set[tuple[int, int]]:
        claims = [item.turn.claim for item in items]
        ids, epochs = [claim.id for claim in claims], [claim.epoch for claim in claims]
        return await queue.still_held(*self._place(), self.id, ids, epochs) if claims else set()

    # -- a lost connection

    async def _come_back(self, items: list[Item]) -> list[Claim]:
        """Crash, or register as one's own heir; gives back claims that were not known of."""
        self.race.counts["connections cut"] += 1
        former = self.bucket, self.id
        if self.race.chance.random() < 0.5:
            self.race.counts["crashes"] += 1
            self.race.dead_workers.append(former)
            self._drop_all(items)
            await self._connect()
            await self.worker.register()
            return []
        claims = await self._inherit(former[1])
        self.race.dead_workers.append(former)  # for claims that were locked
        held = {(claim.id, claim.epoch) for claim in claims}
        unknown = [claim for claim in claims if (claim.id, claim.epoch) not in self.turns]
        self.race.counts["claims found after a cut"] += len(unknown)
        await self._end_or_drop([turn for key, turn in self.turns.items() if key not in held], items)
        await self._resolve([item for item in items if isinstance(item.row, Checkpoint) and not item.answer.done()])
        self._items += [item for item in items if isinstance(item.row, Move) and not item.answer.done()]
        return unknown

    async def _inherit(self, former: int) -> list[Claim]:
        """Register under a new identity; an answer that is lost is asked for again under the same one."""
        await self._connect()
        while True:
            try:
                if self.race.chance.random() >= 0.2:
                    return await self.worker.register(old=former)
                await self._cut(self.worker.register(old=former), [0, 0.0005, 0.002])
            except LOST:
                self.race.counts["registrations cut"] += 1
                await self._connect(self.id)
            except asyncpg.LockNotAvailableError:
                await workers.evict_backend(*self._place(), former)

    async def _end_or_drop(self, turns: list[Turn], items: list[Item]) -> None:
        """Turns without a claim: ended by the uncertain tick, or lost."""
        endings = await queue.read_endings(*self._place(), [turn.claim.id for turn in turns])
        epochs = {row["id"]: row["epoch"] for row in endings if row["status"] not in (0, 4)}
        for turn in turns:
            mine = [item for item in items if item.turn is turn]
            finished = any(isinstance(item.row, Move) and item.row.verb is Verb.FINISH for item in mine)
            for item in mine:
                if finished and epochs.get(turn.claim.id) == turn.claim.epoch:
                    self._applied(item)
                else:
                    item.lose()
            self._drop(turn)

    async def _connect(self, id: int | None = None) -> None:
        if self.turns and self.id in self.race.stolen:
            for turn in self.turns.values():
                turn.zombie = True
        connection = await self.database.connect()
        self.worker = TickingWorker(connection, self.database.schema, self.bucket, [], id or random.getrandbits(62))

    def _drop(self, turn: Turn) -> None:
        turn.dead = True
        turn.poked.set()
        self.turns.pop((turn.claim.id, turn.claim.epoch), None)
        for item in self._items:
            if item.turn is turn:
                item.lose()
        self._items = [item for item in self._items if item.turn is not turn]

    def _drop_all(self, items: list[Item]) -> None:
        for item in items:
            item.lose()
        for turn in list(self.turns.values()):
            self._drop(turn)

    # -- claims become turns

    def _begin(self, claims: Iterable[Claim]) -> None:
        turns = [Turn(self, claim, claim.wakes) for claim in claims]
        for turn in turns:
            key = (turn.claim.id, turn.claim.epoch)
            if key in self.turns:
                self.race.violation(f"claimed twice: {key}")
            self.turns[key] = turn
        self.race.counts["claims"] += len(turns)
        if turns:
            self._spawn(self._start(turns))

    async def _start(self, turns: list[Turn]) -> None:
        async with self._exchange:
            rows = await queue.load_claims(*self._place(), [turn.claim.id for turn in turns])
        records = {row["id"]: row for row in rows}
        for turn in turns:
            turn.program = json.loads(records[turn.claim.id]["input"])
            turn.attempt = records[turn.claim.id]["attempt"]
        resumed = [turn for turn in turns if turn.claim.epoch > 1]
        if resumed:
            await self.load(resumed)
        for turn in turns:
            if not turn.dead:
                self._spawn(self._run(turn))

    async def _run(self, turn: Turn) -> None:
        try:
            await turn.run()
        finally:
            self.turns.pop((turn.claim.id, turn.claim.epoch), None)
            self._kick.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.race.violation(f"the driver failed: {error!r}")

    def _place(self) -> tuple[asyncpg.Connection, str, int]:
        return self.worker.connection, self.database.schema, self.bucket


def _stored(row: asyncpg.Record) -> Stored:
    due_at = None if row["due_in"] is None else monotonic() + row["due_in"]
    return Stored(row["kind"], row["status"], json.loads(row["result"] or "null"), due_at)


def _as_sent(row: Checkpoint | Move) -> Stored:
    assert isinstance(row, Checkpoint)
    due_at = None if row.due is None else monotonic() + row.due
    return Stored(row.kind, row.status, json.loads(row.result or b"null"), due_at)
