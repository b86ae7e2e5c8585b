"""What is to come in a run under test, in the order of its clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from zart.testing.journal import Clock

Action: TypeAlias = Callable[[], object]


@dataclass(order=True, slots=True)
class Entry:
    """One thing to come. `action` is None when it was withdrawn."""

    at: float
    is_turn: bool
    chance: float
    number: int
    action: Action | None = field(compare=False)

    def withdraw(self) -> None:
        self.action = None


class Agenda:
    """Things to come, each at its moment. Of one moment, what comes from outside is first, then turns as they came.

    Args:
        clock: moved to the moment of what is taken.
        seed: turns of one moment come in a random order instead, the same for the same seed.
    """

    def __init__(self, clock: Clock, seed: int | None) -> None:
        self.clock = clock
        self._entries: list[Entry] = []
        self._numbers = itertools.count()
        self._random = None if seed is None else random.Random(seed)

    def add(self, at: float, action: Action, *, is_turn: bool = False) -> Entry:
        """Have something done when the clock shows this."""
        chance = self._random.random() if is_turn and self._random is not None else 0.0
        entry = Entry(at, is_turn, chance, next(self._numbers), action)
        heapq.heappush(self._entries, entry)
        return entry

    def next_at(self) -> float:
        """When the next thing is due; inf: nothing is to come."""
        while self._entries and self._entries[0].action is None:
            heapq.heappop(self._entries)
        return self._entries[0].at if self._entries else math.inf

    def take(self, until: float) -> Action | None:
        """Move the clock to the next thing and take it out; None, and the clock at `until`, when that is sooner."""
        at = self.next_at()
        self.clock.now = max(self.clock.now, min(at, until))
        return heapq.heappop(self._entries).action if at <= until and at < math.inf else None
