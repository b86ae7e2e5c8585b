"""Which worker runs what is set apart. It has to hold nothing else, so it is asked to claim nothing more.

One at a time is asked, the one that holds the least. When it is empty it runs one such execution, and goes on as
before; another is asked while there are more. One that is not empty in time, because it runs something long, may go on,
and the next one is asked and given twice as long: so one of them gets there, whatever runs. When all were asked in vain
they are left in peace for as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zart.metrics import ALONE, ASKED, Place

FIRST_PATIENCE: Final = 5.0


class Seclusion:
    """Decides whom to ask. No more than half of the workers (but one in any case) are kept from other work at a time.

    Args:
        places: the workers' places.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._forget()

    def _forget(self) -> None:
        self._patience, self._until = FIRST_PATIENCE, float("-inf")
        self._tried: set[int] = set()
        self._waits = False  # for the one that was asked

    def ask(self, wanted: bool, now: float) -> int | None:
        """Have a worker make room, if that is wanted. Gives the index of the one that is to be told now, if any.

        Args:
            wanted: work that is set apart is ready.
            now: monotonic time.
        """
        asked = [place for place in self._places if place.alone == ASKED]
        if not wanted or (self._waits and not asked):
            self._forget()
        elif now < self._until:
            return None
        for place in asked:
            place.alone = 0
        free = self._free() if wanted else []
        if not free:
            return None
        self._patience *= 2 if asked else 1
        self._until = now + self._patience
        untried = [index for index in free if index not in self._tried]
        self._waits = bool(untried)
        if not untried:
            self._tried = set()
            return None
        chosen = min(untried, key=lambda index: self._places[index].held)
        self._places[chosen].alone = ASKED
        self._tried.add(chosen)
        return chosen

    def _free(self) -> list[int]:
        """Workers that may be asked."""
        able = [index for index, place in enumerate(self._places) if place.ready and not place.draining]
        free = [index for index in able if self._places[index].alone != ALONE]
        return free if len(able) - len(free) < max(1, len(able) // 2) else []
