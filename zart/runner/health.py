"""Which loops stand still: of processes that are alive for the kernel, but do nothing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from zart.metrics import LEFT, Place

K = TypeVar("K", bound=Hashable)

_OWN_STALL: Final = 5.0


class Watchdog(Generic[K]):
    """Tells which of some beats stand still.

    Args:
        limit: seconds a beat may stand still.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._looked = 0.0
        self._seen: dict[K, tuple[object, float]] = {}

    def stalled(self, beats: Mapping[K, object], now: float) -> dict[K, float]:
        """Those that have not changed for longer than the limit, with the seconds that they have not; to be asked about
        once a second.

        When this process itself was stopped for a while, so was the evidence: all counting begins again.
        """
        if now - self._looked > _OWN_STALL:
            self._seen.clear()
        self._looked = now
        before, self._seen = self._seen, {}
        found: dict[K, float] = {}
        for key, beat in beats.items():
            seen = before.get(key)
            since = now if seen is None or seen[0] != beat else seen[1]
            self._seen[key] = (beat, since)
            if now - since > self._limit:
                found[key] = now - since
        return found


def loop_beats(places: Sequence[Place]) -> dict[int, object]:
    """What rises while the event loops of registered workers turn, by the index of their place."""
    return {
        index: (place.pid, place.loop_count)
        for index, place in enumerate(places)
        if place.ready and place.loop_count != LEFT
    }
