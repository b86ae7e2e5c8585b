"""Which workers are stalled: alive for the kernel, but with an event loop that no longer turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zart.metrics import Place

_OWN_STALL: Final = 5.0


class Watchdog:
    """Tells whose loop counter stands still.

    Args:
        limit: seconds a loop may stand still.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._looked = 0.0
        self._seen: dict[int, tuple[int, int, float]] = {}

    def stalled(self, places: Sequence[Place], now: float) -> dict[int, float]:
        """Indexes of the places whose loop has not moved for longer than the limit, with the seconds that it has not;
        to be asked about once a second.

        When this process itself was stopped for a while, so was the evidence: all counting begins again.
        """
        if now - self._looked > _OWN_STALL:
            self._seen.clear()
        self._looked = now
        found: dict[int, float] = {}
        for index, place in enumerate(places):
            seen = self._seen.get(index)
            if not place.ready or seen is None or seen[:2] != (place.pid, place.loop_count):
                self._seen[index] = (place.pid, place.loop_count, now)
            elif now - seen[2] > self._limit:
                found[index] = now - seen[2]
        return found
