"""When to ask for ready work, for whom, and how many workers to wake. Decisions only: no clock, no SQL.

Workers that are ticking claim by themselves. The supervisor asks for the others: once per poll interval while nothing
comes, and every 20 ms while work comes in and is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zart.metrics import TICKS, Place

LEAST_INTERVAL: Final = 0.02
QUIET: Final = 0.05
"""A worker with free slots that has not ticked for so long takes no work by itself."""
BUSY: Final = 1.0
"""A worker that could take no work for so long is told of none."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to ask.

    Args:
        interval: seconds until the next poll.
        wakes: how many workers to wake now.
    """

    interval: float
    wakes: int

    def polled(self, *, found: bool, claimed: bool, most: float) -> Pace:
        """The pace after a poll.

        Ready work wakes one worker, then two, four and so on until it is gone. Ready work that nobody takes (a user's
        transaction holds its row) is no reason to hurry.

        Args:
            found: there was ready work.
            claimed: work was claimed since the poll before.
            most: the poll interval.
        """
        wakes = max(1, self.wakes * 2) if found else 0
        if found and (claimed or not self.wakes):
            return Pace(LEAST_INTERVAL, wakes)
        return Pace(min(max(self.interval, LEAST_INTERVAL) * 2, most), wakes)


AT_ONCE: Final = Pace(0.0, 0)
"""Ask now: something has changed."""


def is_worth_a_claim(free: int, slots: int) -> bool:
    """True when so many free slots are worth asking for work: a few among many are not, so that claims stay batched."""
    return free >= max(1, slots // 8)


@dataclass(slots=True)
class _Seen:
    worker_id: int = 0
    ticks: int = 0
    ticked_at: float = 0.0
    takes_at: float = 0.0
    marked: bool = False


class Presence:
    """Which workers could take work, told by watching their places.

    Args:
        places: the workers' places.
        slots: room for executions in each worker.
    """

    def __init__(self, places: Sequence[Place], slots: int) -> None:
        self._places, self._slots = places, slots
        self._seen = [_Seen() for _ in places]

    def takers(self, now: float) -> list[int]:
        """Indexes of the workers that could take work but would not look for it, the emptiest first."""
        found: list[tuple[int, int, int]] = []
        for index, (place, seen) in enumerate(zip(self._places, self._seen, strict=True)):
            if place.worker_id != seen.worker_id:
                self._seen[index] = seen = _Seen(place.worker_id, place.words[TICKS], now, now)
            if place.words[TICKS] != seen.ticks:
                seen.ticks, seen.ticked_at = place.words[TICKS], now
            room = is_worth_a_claim(self._slots - place.held, self._slots)
            if room and place.ready and not place.draining and (place.idle or now - seen.ticked_at >= QUIET):
                seen.takes_at = now
                found.append((1 - place.idle, place.held, index))
        return [index for _, _, index in sorted(found)]

    def marks(self, takers: Sequence[int], now: float) -> tuple[list[int], list[int]]:
        """Ids of workers to be marked as waiting for work, and of those to be unmarked; they count as told.

        A mark is set at once and taken back late: it costs a starter one needless hint at worst, its lack costs a poll
        interval.
        """
        marked: list[int] = []
        unmarked: list[int] = []
        for index, seen in enumerate(self._seen):
            if index in takers and not seen.marked:
                seen.marked = True
                marked.append(seen.worker_id)
            elif seen.marked and now - seen.takes_at >= BUSY:
                seen.marked = False
                unmarked.append(seen.worker_id)
        return marked, unmarked

    def forget_marks(self) -> None:
        """What was marked is unknown, so mark it again."""
        for seen in self._seen:
            seen.marked = False

    def is_settled(self) -> bool:
        """True when no place can become a taker without being woken first."""
        return all(
            seen.marked or not place.ready or place.draining
            for seen, place in zip(self._seen, self._places, strict=True)
        )
