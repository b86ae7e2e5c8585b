"""Whose lease to renew, and whose to take. Decisions only: no clock, no SQL.

A lease is renewed from outside of the worker's event loop and only while that loop turns, so a worker that is stuck
loses its work to others. Lost leases are judged by what one connection saw without a break: after an outage of the
database all leases have run out, and nobody is dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from zart.metrics import Place
from zart.store.workers import WorkerLease

_LEAST_STALL: Final = 0.5  # shorter pauses are those of a busy machine
_JUST_AFTER: Final = 0.02
_LEAST_PATIENCE: Final = 0.2


class Pulse:
    """Tells which workers have shown life since the last time it was asked."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}

    def alive(self, places: Sequence[Place]) -> list[int]:
        """Ids of the registered workers whose loop has turned since the last call; those seen first count as alive."""
        ids: list[int] = []
        for index, place in enumerate(places):
            now = (place.worker_id, place.loop_count)
            if place.ready and place.worker_id and self._seen.get(index) != now:
                ids.append(place.worker_id)
            self._seen[index] = now
        return ids


class Observer:
    """Tells which leases may be taken, from what one connection saw. Make another for each connection.

    Args:
        interval: seconds between two renewals of a lease.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._stall = max(interval / 2, _LEAST_STALL)
        self._looked: float | None = None
        self._seen: dict[tuple[int, int], tuple[object, float]] = {}

    def takeable(self, leases: Iterable[WorkerLease], asked: float, answered: float) -> list[WorkerLease]:
        """Those leases that have run out and were not renewed for two intervals, watched without a break; and at once
        those of workers that are marked dead, whose last claims were locked when they were taken over.

        When this process or the database stood still for more than half an interval, all watching begins again: those
        who renew may have stood still as well.

        Args:
            leases: all there are.
            asked, answered: monotonic times around the look. Looks are to be `interval` apart at most.
        """
        late = self._looked is not None and answered - self._looked > self._interval + self._stall
        if late or answered - asked > self._stall:
            self._seen.clear()
        self._looked = answered
        before, self._seen = self._seen, {}
        found: list[WorkerLease] = []
        for lease in leases:
            key = (lease.bucket, lease.id)
            until, since = before.get(key, (None, 0.0))
            if until != lease.lease_until:
                since = answered
            self._seen[key] = (lease.lease_until, since)
            if lease.dead or (lease.remaining < 0 and answered - since >= 2 * self._interval):
                found.append(lease)
        return found

    def patience(self, leases: Iterable[WorkerLease]) -> float:
        """Seconds until the next look: an interval, or less when a lease that should have been renewed runs out."""
        running_out = (lease.remaining for lease in leases if lease.remaining < self._interval)
        return min(self._interval, max(min(running_out, default=self._interval) + _JUST_AFTER, _LEAST_PATIENCE))
