"""When the supervisor asks for work, for whom, and how many workers it wakes."""

from __future__ import annotations

from zart.engine.polling import AT_ONCE, BUSY, LEAST_INTERVAL, QUIET, STILL, TELL_AGAIN, Pace, Presence
from zart.meters import TICKS
from zart.metrics import Place

MOST = 1.0


def _ready(worker_id: int = 1, *, idle: int = 1, held: int = 0) -> Place:
    place = Place.private()
    place.worker_id, place.ready, place.idle, place.held = worker_id, 1, idle, held
    return place


def test_polls_that_find_nothing_become_rare_up_to_the_poll_interval() -> None:
    pace, intervals = AT_ONCE, list[float]()
    for _ in range(10):
        pace = pace.polled(found=False, claimed=False, most=MOST)
        intervals.append(pace.interval)
    assert intervals == sorted(intervals)
    assert intervals[-1] == MOST
    assert pace.wakes == 0


def test_work_that_is_taken_wakes_twice_as_many_each_time() -> None:
    pace, wakes = AT_ONCE, list[int]()
    for _ in range(5):
        pace = pace.polled(found=True, claimed=True, most=MOST)
        wakes.append(pace.wakes)
        assert pace.interval == LEAST_INTERVAL
    assert wakes == [1, 2, 4, 8, 16]


def test_work_that_nobody_takes_is_no_reason_to_hurry() -> None:
    pace = AT_ONCE
    for _ in range(10):
        pace = pace.polled(found=True, claimed=False, most=MOST)
    assert pace.interval == MOST
    assert pace.wakes > 0


def test_the_first_find_is_followed_by_a_quick_look() -> None:
    assert Pace(MOST, 0).polled(found=True, claimed=False, most=MOST) == Pace(LEAST_INTERVAL, 1)


def test_the_interval_never_exceeds_a_short_poll_interval() -> None:
    assert Pace(0.02, 0).polled(found=False, claimed=False, most=0.02).interval == 0.02


def _beat(*places: Place) -> None:
    for place in places:
        place.loop_count += 1


def test_idle_workers_take_work_the_emptiest_first() -> None:
    places = [_ready(1, idle=0, held=3), _ready(2), _ready(3, idle=0, held=1)]
    presence = Presence(places, 8)
    presence.takers(0.0)
    assert presence.takers(QUIET) == [1, 2, 0]


def test_a_worker_that_ticks_finds_work_by_itself() -> None:
    place = _ready(idle=0, held=1)
    presence = Presence([place], 8)
    for moment in range(5):
        place.add(TICKS)
        _beat(place)
        assert presence.takers(float(moment)) == []
    _beat(place)
    assert presence.takers(5.0) == [0]


def test_full_draining_and_unready_workers_take_nothing() -> None:
    full, draining, unready = _ready(1, idle=0, held=8), _ready(2), _ready(3)
    draining.draining, unready.ready = 1, 0
    presence = Presence([full, draining, unready], 8)
    presence.takers(0.0)
    _beat(full, draining, unready)
    assert presence.takers(10.0) == []


def test_a_worker_whose_loop_stands_still_takes_nothing() -> None:
    place = _ready()
    presence = Presence([place], 8)
    assert presence.takers(0.0) == [0]
    assert presence.takers(STILL) == []
    _beat(place)
    assert presence.takers(STILL + 0.1) == [0]


def test_a_few_free_slots_among_many_are_not_asked_for() -> None:
    place = _ready(idle=0, held=250)
    presence = Presence([place], 256)
    presence.takers(0.0)
    _beat(place)
    assert presence.takers(10.0) == []


def _marks(presence: Presence, now: float) -> tuple[list[int], list[int]]:
    """Marks at this moment, all of which are told."""
    marked, unmarked = presence.marks(presence.takers(now), now)
    presence.told(marked, True)
    presence.told(unmarked, False)
    return marked, unmarked


def test_a_mark_is_set_at_once_and_taken_back_late() -> None:
    place = _ready(7)
    presence = Presence([place], 8)
    assert _marks(presence, 0.0) == ([7], [])
    assert _marks(presence, 0.1) == ([], [])
    place.idle, place.held = 0, 8
    assert _marks(presence, 0.2) == ([], [])
    assert _marks(presence, 0.1 + BUSY) == ([], [7])
    assert _marks(presence, 5.0) == ([], [])


def test_a_mark_that_was_not_told_is_tried_again_after_a_while() -> None:
    presence = Presence([_ready(7)], 8)
    assert presence.marks(presence.takers(0.0), 0.0) == ([7], [])
    assert presence.marks(presence.takers(0.05), 0.05) == ([], [])
    assert presence.marks(presence.takers(TELL_AGAIN), TELL_AGAIN) == ([7], [])


def test_a_worker_under_a_fresh_id_is_marked_again() -> None:
    place = _ready(7)
    presence = Presence([place], 8)
    _marks(presence, 0.0)
    place.worker_id = 8
    assert _marks(presence, 0.1) == ([8], [])


def test_marks_that_were_lost_are_set_again() -> None:
    presence = Presence([_ready(7)], 8)
    _marks(presence, 0.0)
    presence.forget_marks()
    assert _marks(presence, 0.1) == ([7], [])


def test_presence_is_settled_when_every_worker_is_marked() -> None:
    places = [_ready(1), _ready(2, idle=0, held=8)]
    presence = Presence(places, 8)
    _marks(presence, 0.0)
    assert not presence.is_settled()
    places[1].held = 0
    _marks(presence, 0.5)
    assert presence.is_settled()
