"""Those who offer events to executions, and those who cancel them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

from tests.race.event_stage import EVENT_KEY, Stage, Story
from zart.model import EventAnswer
from zart.store import executions, journal


class Senders:
    """Users with a connection each. What they were told is noted with the story, to be compared with its end."""

    def __init__(self, stage: Stage, connections: Sequence[asyncpg.Connection]) -> None:
        self._stage, self._scene, self._chance = stage, stage.scene, stage.chance
        self._free: asyncio.Queue[asyncpg.Connection] = asyncio.Queue()
        for connection in connections:
            self._free.put_nowait(connection)

    async def play(self, story: Story, name: str, *, must_commit: bool) -> None:
        """One sender: what chance lets roll back is offered again; `must_commit` until a transaction commits."""
        for number in range(3):
            await self._cue(story)
            payload = f'"{name} {number}"'
            committed = await self._offer(story, payload, may_roll_back=not (must_commit and number == 2))
            if committed:
                return
            if not must_commit and self._chance.random() < 0.5:
                return

    async def cancel(self, story: Story) -> None:
        """A user who changes their mind."""
        await self._cue(story)
        connection = await self._free.get()
        story.cancelling = True
        done = await executions.cancel(connection, self._scene.schema, self._scene.bucket, story.name)
        self._free.put_nowait(connection)
        if done.what == "cancelled":
            story.cancelled = True
            self._stage.counts["cancelled"] += 1
            self._stage.ended(story)

    async def _cue(self, story: Story) -> None:
        """The moment that chance named: an act of the body, or its sleep or end."""
        act = self._chance.randrange(10)
        await story.bell.until(lambda: story.acts >= act or (story.asleep and act >= 5) or story.is_over)
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.random() * 0.002)

    async def _offer(self, story: Story, payload: str, *, may_roll_back: bool) -> bool:
        """Whether it was committed."""
        connection, choice = await self._free.get(), self._chance.random()
        if choice < 0.6:
            self._told(story, payload, await self._send(connection, story, payload))
            committed = True
        else:
            committed = choice < 0.8 or not may_roll_back
            transaction = connection.transaction()
            await transaction.start()
            answer = await self._send(connection, story, payload)
            await self._stage.two_ticks_of_every_worker()
            await (transaction.commit() if committed else transaction.rollback())
            if committed:
                self._told(story, payload, answer)
                self._stage.counts["commits later"] += 1
            else:
                story.withdrawn.append(payload)
                self._stage.counts["rollbacks"] += 1
        self._free.put_nowait(connection)
        return committed

    async def _send(self, connection: asyncpg.Connection, story: Story, payload: str) -> EventAnswer | None:
        scene = self._scene
        offered = await journal.offer_event(
            connection, scene.schema, scene.bucket, story.name, EVENT_KEY, "event", payload
        )
        if offered.answer is EventAnswer.FINISHED and not (story.ending or story.cancelling):
            self._stage.violation(story, "a sender was told that an unfinished execution has ended")
        return offered.answer

    def _told(self, story: Story, payload: str, answer: EventAnswer | None) -> None:
        story.answers.append((payload, answer))
        story.stored = story.stored or answer is EventAnswer.ACCEPTED
        self._stage.counts[str(answer)] += 1
