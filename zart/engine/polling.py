"""When to ask for ready work, for whom, and how many workers to wake. Decisions only: no clock, no SQL.

Workers that are ticking claim by themselves. The supervisor asks for the others: once per poll interval while nothing
comes, and every 20 ms while work comes in and is taken.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

from zart.meters import TICKS
from zart.metrics import Place

LEAST_INTERVAL: Final = 0.02
QUIET: Final = 0.05
"""A worker with free slots that has not ticked for so long takes no work by itself."""
BUSY: Final = 1.0
"""A worker that could take no work for so long is told of none."""
STILL: Final = 1.0
"""A worker whose event loop has not turned for so long can take none."""
TELL_AGAIN: Final = 0.2
"""How long to wait before a mark that could not be set is tried again."""


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
    """What was seen of one place, with monotonic times."""

    worker_id: int
    ticks: int
    beats: int
    ticked_at: float
    beaten_at: float
    taking_at: float
    marked: bool = False
    told_at: float = float("-inf")


class Presence:
    """Which workers could take work, told by watching their places.

    Args:
        places: the workers' places.
        slots: room for executions in each worker.
    """

    def __init__(self, places: Sequence[Place], slots: int) -> None:
        self._places, self._slots = places, slots
        self._seen = [_Seen(0, 0, 0, 0.0, 0.0, 0.0) for _ in places]

    def takers(self, now: float) -> list[int]:
        """Indexes of the workers that could take work but would not look for it, the emptiest first."""
        found: list[tuple[int, int, int]] = []
        for index, place in enumerate(self._places):
            seen = self._look_at(index, place, now)
            able = place.ready and not place.draining and not place.alone and now - seen.beaten_at < STILL
            quiet = place.idle or now - seen.ticked_at >= QUIET
            if able and quiet and is_worth_a_claim(self._slots - place.held, self._slots):
                seen.taking_at = now
                found.append((1 - place.idle, place.held, index))
        return [index for _, _, index in sorted(found)]

    def _look_at(self, index: int, place: Place, now: float) -> _Seen:
        seen, ticks, beats = self._seen[index], place.words[TICKS], place.loop_count
        if place.worker_id != seen.worker_id:
            self._seen[index] = seen = _Seen(place.worker_id, ticks, beats, now, now, now)
        if ticks != seen.ticks:
            seen.ticks, seen.ticked_at = ticks, now
        if beats != seen.beats:
            seen.beats, seen.beaten_at = beats, now
        return seen

    def marks(self, takers: Sequence[int], now: float) -> tuple[list[int], list[int]]:
        """Ids of workers to be marked as waiting for work, and of those to be unmarked; `told` ends the matter.

        A mark is set at once and taken back late: it costs a starter one needless hint at worst, its lack costs a poll
        interval.
        """
        marked: list[int] = []
        unmarked: list[int] = []
        for index, seen in enumerate(self._seen):
            if now - seen.told_at < TELL_AGAIN:
                continue
            if index in takers and not seen.marked:
                seen.told_at = now
                marked.append(seen.worker_id)
            elif seen.marked and now - seen.taking_at >= BUSY:
                seen.told_at = now
                unmarked.append(seen.worker_id)
        return marked, unmarked

    def told(self, worker_ids: Container[int], marked: bool) -> None:
        """These workers are marked now, or unmarked; others whose rows were locked are asked for again."""
        for seen in self._seen:
            if seen.worker_id in worker_ids:
                seen.marked, seen.told_at = marked, float("-inf")

    def forget_marks(self) -> None:
        """What was marked is unknown, so mark it again."""
        for seen in self._seen:
            seen.marked, seen.told_at = False, float("-inf")

    def is_settled(self) -> bool:
        """True when no place can become a taker without being woken first."""
        return all(
            seen.marked or not place.ready or place.draining
            for seen, place in zip(self._seen, self._places, strict=True)
        )
