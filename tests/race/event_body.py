"""A worker whose bodies wait for an event by the protocol's rule; only the moments are left to chance."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from tests.race.event_stage import EVENT_KEY, TIMED_OUT, WAIT_KEY, Stage, Story, outcome_of
from tests.race.together import Together
from tests.support.ticking import NEVER, Checkpoint, Claim, Move, TickingWorker
from zart.model import Kind, Outcome, Verb
from zart.store import queue

SLOTS = 32


@dataclass(slots=True)
class Waiting:
    """What a body knows. `seen` None: its claim is gone. `due_at` by the loop's clock, None to wait without end."""

    seen: int | None
    event: str | None
    due_at: float | None


class EventWorker:
    """One worker: ticks on one connection, looks on another, what it reads on a third.

    `reads_first` is a mistake to be seen by others: the key is read before the counter is asked for.
    """

    def __init__(
        self, stage: Stage, number: int, worker: TickingWorker, readers: Sequence[asyncpg.Connection], reads_first: bool
    ) -> None:
        self._stage, self._number, self._worker, self._reads_first = stage, number, worker, reads_first
        self._looking, self._reading, self._loading = readers
        self._chance, self._counts = stage.chance, stage.counts
        self._claims: list[Claim] = []
        self._held = 0
        self._loop = asyncio.get_running_loop()
        self.tick = Together(self._tick)
        self.look = Together(self._look)
        self.read = Together(self._read)
        self.load = Together(self._load)

    async def run(self) -> None:
        """Claim and play until the stage is over."""
        async with asyncio.TaskGroup() as turns:
            while not self._stage.over:
                await self.tick(None)
                for claim in self._claims:
                    turns.create_task(self._turn(claim))
                self._claims = []
                await asyncio.sleep(0.0005)

    # -- one turn

    async def _turn(self, claim: Claim) -> None:
        story = self._stage.stories[claim.id]
        story.asleep, self._held = False, self._held + 1
        waiting = await self._begin(story, claim)
        while waiting.seen is not None and waiting.event is None and not self._stage.over:
            if waiting.due_at is not None and self._loop.time() >= waiting.due_at:
                await self._time_out(story, claim, waiting)
            elif story.parks and self._chance.random() < 0.4:
                if await self._park(story, claim, waiting):
                    break
            else:
                await self._listen(story, claim, waiting)
        if waiting.event is not None:
            await self._go_on(story, claim, waiting.event)
        elif waiting.seen is None and not story.cancelling:
            self._stage.violation(story, "its claim is gone, and nobody cancelled it")
        self._held -= 1

    async def _begin(self, story: Story, claim: Claim) -> Waiting:
        """What the journal tells, and in a first turn what is found after the wait has been registered."""
        self._act(story)
        rows = await self.load(claim)
        began = self._loop.time()
        seen = next((row["wakes"] for row in rows if row["what"] == "counters"), None)
        found = {row["step_key"]: row for row in rows if row["what"] == "checkpoint"}
        if EVENT_KEY in found:
            self._counts["woken by it" if WAIT_KEY in found else "there before the wait"] += 1
            return Waiting(seen, outcome_of(found[EVENT_KEY]), None)
        if WAIT_KEY in found:
            due_in = found[WAIT_KEY]["due_in"]
            return Waiting(seen, None, None if due_in is None else began + due_in)
        self._act(story)
        await self.tick(Checkpoint(claim.id, claim.epoch, WAIT_KEY, Kind.WAIT, due=story.timeout, name="event"))
        waiting = Waiting(-1, None, None if story.timeout is None else began + story.timeout)
        await self._listen(story, claim, waiting)
        if waiting.event is not None:
            self._counts["found after registering"] += 1
        return waiting

    async def _listen(self, story: Story, claim: Claim, waiting: Waiting) -> None:
        """Ask for the counter, then, if it is another, read the key. A counter is taken only before a read."""
        stored, cancelled, asked = story.stored, story.cancelled, waiting.seen
        assert asked is not None
        self._act(story)
        if self._reads_first:
            waiting.event = await self._event_of(claim)
        waiting.seen = await self.look((claim, asked))
        if waiting.seen not in (None, asked) and not self._reads_first:
            self._act(story)
            waiting.event = await self._event_of(claim)
            self._counts["heard of a wake-up"] += asked >= 0
        if stored and waiting.seen is not None and waiting.event is None:
            self._stage.violation(story, "a look after an event was kept has not led to it")
        if cancelled and waiting.seen is not None:
            self._stage.violation(story, "a look after a cancel has not told of it")

    async def _time_out(self, story: Story, claim: Claim, waiting: Waiting) -> None:
        """Write the timeout under the event's key; what was missing is read back, or else sent again."""
        self._act(story)
        sent = Checkpoint(
            claim.id, claim.epoch, EVENT_KEY, Kind.EVENT, Outcome.TIMED_OUT, name="event", result=None, error=None
        )
        if await self.tick(sent):
            waiting.event = TIMED_OUT
            self._counts["timeouts"] += 1
            return
        self._act(story)
        waiting.event = await self._event_of(claim)
        if waiting.event is None:
            waiting.seen = await self.look((claim, -1))
            self._counts["timeouts sent again"] += waiting.seen is not None
            waiting.event = None if waiting.seen is None else await self._event_of(claim)
        if waiting.event not in (None, TIMED_OUT):
            self._counts["timeouts too late"] += 1

    async def _park(self, story: Story, claim: Claim, waiting: Waiting) -> bool:
        """Whether it is put down; if not, the row was busy, or the claim is gone."""
        self._act(story)
        due = None if waiting.due_at is None else waiting.due_at - self._loop.time()
        if self._chance.random() < 0.2:
            due = min(0.01 if due is None else due, self._chance.random() * 0.01)
        assert waiting.seen is not None
        if await self.tick(Move(claim.id, claim.epoch, Verb.PARK, seen=waiting.seen, due=due)):
            self._counts["parked over an event"] += story.stored
            self._counts["parked"] += 1
            story.asleep = True
            story.bell.ring()
            return True
        self._counts["busy when parked"] += 1
        waiting.seen = await self._still(claim, waiting.seen)
        return False

    async def _go_on(self, story: Story, claim: Claim, event: str) -> None:
        """The body has its outcome: it ends, or is put off and must be given the same again."""
        if story.outcome not in (None, event):
            self._stage.violation(story, f"a body that had one outcome was given another, {event!r}")
        story.outcome = event
        ends = self._chance.random() < 0.8
        story.ending = story.ending or ends
        move = Move(claim.id, claim.epoch, Verb.FINISH if ends else Verb.PUT_OFF)
        self._act(story)
        while not (done := await self.tick(move)) and not self._stage.over:
            if await self._still(claim, 0) is None:
                if not story.cancelling:
                    self._stage.violation(story, "its claim is gone, and nobody cancelled it")
                return
        if done and ends:
            story.ended = True
            self._stage.ended(story)

    def _act(self, story: Story) -> None:
        story.acts += 1
        story.bell.ring()

    async def _event_of(self, claim: Claim) -> str | None:
        row = await self.read(claim)
        return None if row is None else outcome_of(row)

    async def _still(self, claim: Claim, seen: int) -> int | None:
        """What was seen, if the claim stands."""
        return seen if await self.look((claim, -1)) is not None else None

    # -- statements

    async def _tick(self, asked: list[Checkpoint | Move | None]) -> list[bool]:
        """Whether each was done. Checkpoints are only counted: if some are missing, none is taken as done."""
        checkpoints = [each for each in asked if isinstance(each, Checkpoint)]
        moves = [each for each in asked if isinstance(each, Move)]
        free = max(0, SLOTS - self._held) if None in asked else 0
        answer = await self._worker.tick(checkpoints, moves, claim=free)
        self._claims += answer.claims
        self._stage.ticks[self._number] += 1
        self._stage.bell.ring()
        all_stored = answer.checkpointed == len(checkpoints)
        return [each.id in answer.applied if isinstance(each, Move) else all_stored for each in asked]

    async def _look(self, asked: list[tuple[Claim, int]]) -> list[int | None]:
        """The counter of each as it is now, None when the claim is gone."""
        heard = await queue.look(
            self._looking,
            self._worker.schema,
            self._worker.bucket,
            self._worker.id,
            [claim.id for claim, _ in asked],
            [claim.epoch for claim, _ in asked],
            [seen for _, seen in asked],
            [NEVER] * len(asked),
        )
        return [heard.get(claim.id, seen) for claim, seen in asked]

    async def _read(self, claims: list[Claim]) -> list[asyncpg.Record | None]:
        """The row under each one's event key."""
        place = self._reading, self._worker.schema, self._worker.bucket
        ids, runs = [claim.id for claim in claims], [claim.run for claim in claims]
        found = {row["id"]: row for row in await queue.read_checkpoints(*place, ids, runs, [EVENT_KEY] * len(ids))}
        return [found.get(id) for id in ids]

    async def _load(self, claims: list[Claim]) -> list[list[asyncpg.Record]]:
        """The journal of each and its counters, of one snapshot."""
        place = self._loading, self._worker.schema, self._worker.bucket
        ids, runs = [claim.id for claim in claims], [claim.run for claim in claims]
        rows: defaultdict[int, list[asyncpg.Record]] = defaultdict(list)
        for row in await queue.load_journal(*place, ids, runs, self._worker.id):
            rows[row["id"]].append(row)
        return [rows[id] for id in ids]
