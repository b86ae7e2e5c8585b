"""What a run of the stress test has seen so far, and what must not have happened."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Race:
    """What all players share: chance, what was seen so far, and what must not have happened."""

    seed: int
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter[str])
    violations: list[str] = field(default_factory=list[str])
    returned: dict[tuple[int, int, int], Any] = field(default_factory=dict[tuple[int, int, int], Any])
    ended: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])
    dead_workers: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    stolen: set[int] = field(default_factory=set[int])

    def violation(self, text: str) -> None:
        self.violations.append(text)
        print("VIOLATION", text, flush=True)

    def end(self, claim: tuple[int, int], how: str) -> None:
        """Note that a run ended; it must be the first time."""
        if claim in self.ended:
            self.violation(f"run {claim} ended twice: {self.ended[claim]}, {how}")
        self.ended[claim] = how

    def give(self, key: tuple[int, int, int], value: Any) -> Any:
        """Note what a call gave to the body; it must be the same every time."""
        if key in self.returned and self.returned[key] != value:
            self.violation(f"{key} gave {self.returned[key]!r}, replayed {value!r}")
        self.returned[key] = value
        return value


@dataclass(frozen=True, slots=True)
class Stored:
    """A journal row as the body knows it. `due_at` by the monotonic clock."""

    kind: int
    status: int
    value: Any
    due_at: float | None
