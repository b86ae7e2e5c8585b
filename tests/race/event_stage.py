"""Executions that wait for one event each, and what their players share."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg

from tests.race.scene import Scene
from zart.codec import step_key
from zart.model import EventAnswer, KeySpace, Kind, Outcome

EVENT_KEY, WAIT_KEY = step_key(KeySpace.EVENT, "event"), step_key(KeySpace.WAIT, "event")

WORKERS = 2

TIMED_OUT = "timed out"


class Bell:
    """Rung when something has happened that others may wait for."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            await self._rung.wait()


@dataclass(slots=True, eq=False)
class Story:
    """One execution: what it is, what its players did and were told.

    `timeout` in seconds, None to wait without; `parks` False: it waits in memory only. `acts` is how many statements
    its body has sent for it, `stored` whether a sender has been told that its event is kept.
    """

    name: str
    timeout: float | None
    parks: bool
    id: int = 0
    acts: int = 0
    asleep: bool = False
    stored: bool = False
    ending: bool = False
    ended: bool = False
    cancelling: bool = False
    cancelled: bool = False
    outcome: str | None = None
    answers: list[tuple[str, EventAnswer | None]] = field(default_factory=list[tuple[str, EventAnswer | None]])
    withdrawn: list[str] = field(default_factory=list[str])
    bell: Bell = field(default_factory=Bell, repr=False)

    @property
    def is_over(self) -> bool:
        return self.ended or self.cancelled


class Stage:
    """What all players share. `ticks` counts the answers that each worker has had."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self.scene, self.chance = scene, chance
        self.stories: dict[int, Story] = {}
        self.counts: Counter[str] = Counter()
        self.ticks = [0] * WORKERS
        self.over = False
        self.bell = Bell()

    def violation(self, story: Story, text: str) -> None:
        self.scene.must(False, f"{text}: {story}")
        self.over = True
        self.bell.ring()

    def ended(self, story: Story) -> None:
        self.counts["ended"] += 1
        story.bell.ring()
        self.bell.ring()

    async def two_ticks_of_every_worker(self) -> None:
        """Wait for two answers of each: the second one's tick was sent after this call."""
        wanted = [count + 2 for count in self.ticks]
        await self.bell.until(lambda: all(here >= there for here, there in zip(self.ticks, wanted, strict=True)))


def outcome_of(row: asyncpg.Record) -> str:
    """A row under the event's key as its payload (JSON text), or TIMED_OUT."""
    assert row["kind"] == Kind.EVENT, f"the event's key holds {dict(row)}"
    if row["status"] == Outcome.TIMED_OUT:
        return TIMED_OUT
    payload: str = row["result"]
    return payload
