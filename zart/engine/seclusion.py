"""Which worker runs what is set apart. It has to hold nothing else, so it is asked to claim nothing more.

One at a time is asked, the one that holds the least. When it is empty it runs one such execution, and goes on as
before; another is asked while there are more. One that is not empty in time, because it runs something long, may go on,
and the next one is asked and given twice as long: so one of them gets there, whatever runs.
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
        self._patience, self._asked_at = FIRST_PATIENCE, 0.0
        self._tried: list[int] = []

    def ask(self, wanted: bool, now: float) -> int | None:
        """Have a worker make room, if that is wanted. Gives the index of the one that is to be told now, if any.

        Args:
            wanted: work that is set apart is ready.
            now: monotonic time.
        """
        asked = [place for place in self._places if place.alone == ASKED]
        if asked and wanted and now - self._asked_at < self._patience:
            return None
        for place in asked:
            place.alone = 0
        if not asked or not wanted:
            self._patience, self._tried = FIRST_PATIENCE, []
        else:
            self._patience *= 2
        chosen = self._choose() if wanted else None
        if chosen is not None:
            self._places[chosen].alone, self._asked_at = ASKED, now
            self._tried.append(chosen)
        return chosen

    def _choose(self) -> int | None:
        able = [index for index, place in enumerate(self._places) if place.ready and not place.draining]
        free = [index for index in able if self._places[index].alone != ALONE]
        if not free or len(able) - len(free) >= max(1, len(able) // 2):
            return None
        untried = [index for index in free if index not in self._tried]
        if not untried:
            self._tried = []
        return min(untried or free, key=lambda index: self._places[index].held)
