"""Whose lease is renewed, and whose is taken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from zart.engine.lease import Observer, Pulse
from zart.metrics import Place
from zart.store.workers import WorkerLease

INTERVAL = 5.0
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def _ready(worker_id: int) -> Place:
    place = Place.private()
    place.worker_id, place.ready = worker_id, 1
    return place


def _lease(remaining: float, *, renewals: int = 0, worker_id: int = 1) -> WorkerLease:
    return WorkerLease(worker_id, 0, BEGAN + timedelta(seconds=renewals), remaining)


def _taken(observer: Observer, lease: WorkerLease, now: float) -> bool:
    return observer.takeable([lease], now, now) == [lease]


def test_a_worker_whose_loop_turns_is_alive() -> None:
    place, pulse = _ready(1), Pulse()
    assert pulse.alive([place]) == [1]
    place.loop_count += 1
    assert pulse.alive([place]) == [1]


def test_a_worker_whose_loop_stands_still_is_not() -> None:
    place, pulse = _ready(1), Pulse()
    pulse.alive([place])
    assert pulse.alive([place]) == []


def test_empty_and_unregistered_places_are_not_alive() -> None:
    unregistered = _ready(1)
    unregistered.ready = 0
    assert Pulse().alive([Place.private(), unregistered]) == []


def test_a_lease_is_taken_when_it_has_run_out_and_was_watched_for_two_intervals() -> None:
    observer = Observer(INTERVAL)
    assert not _taken(observer, _lease(9), 0.0)
    assert not _taken(observer, _lease(4), 5.0)
    assert not _taken(observer, _lease(0.5), 9.0)
    assert _taken(observer, _lease(-0.5), 10.0)


def test_what_a_worker_left_that_is_marked_dead_is_taken_at_once() -> None:
    left = WorkerLease(1, 0, BEGAN, 9.0, dead=True)
    assert Observer(INTERVAL).takeable([left], 0.0, 0.0) == [left]


def test_a_lease_that_ran_out_before_it_was_seen_is_watched_first() -> None:
    observer = Observer(INTERVAL)
    assert not _taken(observer, _lease(-60), 0.0)
    assert not _taken(observer, _lease(-65), 5.0)
    assert _taken(observer, _lease(-70), 10.0)


def test_a_renewal_ends_the_watch() -> None:
    observer = Observer(INTERVAL)
    for now in (0.0, 5.0):
        assert not _taken(observer, _lease(-now - 1), now)
    assert not _taken(observer, _lease(10, renewals=1), 9.0)
    assert not _taken(observer, _lease(-1, renewals=1), 14.0)
    assert _taken(observer, _lease(-6, renewals=1), 19.0)


def test_a_pause_of_the_observer_proves_nothing() -> None:
    observer = Observer(INTERVAL)
    assert not _taken(observer, _lease(-1), 0.0)
    assert not _taken(observer, _lease(-61), 60.0)
    assert not _taken(observer, _lease(-66), 65.0)
    assert _taken(observer, _lease(-71), 70.0)


def test_a_pause_of_the_database_proves_nothing() -> None:
    observer = Observer(INTERVAL)
    assert not _taken(observer, _lease(-1), 0.0)
    assert not _taken(observer, _lease(-6), 5.0)
    assert observer.takeable([_lease(-11)], 7.0, 10.0) == []
    assert not _taken(observer, _lease(-16), 15.0)
    assert _taken(observer, _lease(-21), 20.0)


def test_a_worker_that_went_away_is_forgotten() -> None:
    observer = Observer(INTERVAL)
    observer.takeable([_lease(-1)], 0.0, 0.0)
    observer.takeable([], 5.0, 5.0)
    assert not _taken(observer, _lease(-10), 10.0)


def test_the_next_look_comes_when_a_late_lease_runs_out() -> None:
    observer = Observer(INTERVAL)
    assert observer.patience([_lease(14), _lease(11)]) == INTERVAL
    assert 2.0 < observer.patience([_lease(14), _lease(2.0)]) < 2.1
    assert 0.0 < observer.patience([_lease(-100)]) < INTERVAL
