"""Who is asked to make room for what is set apart."""

from __future__ import annotations

from zart.engine.seclusion import FIRST_PATIENCE, Seclusion
from zart.metrics import ALONE, ASKED, Place


def places(*held: int) -> list[Place]:
    made = [Place.private() for _ in held]
    for place, count in zip(made, held, strict=True):
        place.ready, place.held = 1, count
    return made


def test_the_one_that_holds_the_least_is_asked() -> None:
    workers = places(5, 2, 9)
    assert Seclusion(workers).ask(True, 0.0) == 1
    assert [place.alone for place in workers] == [0, ASKED, 0]


def test_nobody_is_asked_when_nothing_is_set_apart() -> None:
    workers = places(5, 2)
    assert Seclusion(workers).ask(False, 0.0) is None
    assert [place.alone for place in workers] == [0, 0]


def test_one_at_a_time_is_asked_and_waited_for() -> None:
    seclusion = Seclusion(places(5, 2))
    assert [seclusion.ask(True, now) for now in (0.0, 1.0, FIRST_PATIENCE - 0.1)] == [1, None, None]


def test_one_that_does_not_get_empty_gives_way_to_the_next_which_is_given_longer() -> None:
    workers = places(5, 2, 9)
    seclusion = Seclusion(workers)
    asked = [seclusion.ask(True, now * FIRST_PATIENCE) for now in (0.0, 1.0, 2.9, 3.0, 6.9)]
    assert asked == [1, 0, None, 2, None]
    assert [place.alone for place in workers] == [0, 0, ASKED]


def test_all_are_left_in_peace_for_a_while_when_none_got_empty() -> None:
    [busy] = workers = places(5)
    seclusion = Seclusion(workers)
    told: list[tuple[int | None, int]] = []
    for now in (0.0, 1.0, 2.9, 3.0, 4.9, 5.0):
        told.append((seclusion.ask(True, now * FIRST_PATIENCE), busy.alone))
    assert told == [(0, ASKED), (None, 0), (None, 0), (0, ASKED), (None, ASKED), (None, 0)]


def test_the_next_is_asked_at_once_when_one_has_taken_some() -> None:
    workers = places(5, 2)
    seclusion = Seclusion(workers)
    assert seclusion.ask(True, 0.0) == 1
    workers[1].alone = 0
    assert seclusion.ask(True, 0.1) == 1


def test_one_that_was_asked_may_go_on_when_the_work_is_gone() -> None:
    workers = places(5, 2)
    seclusion = Seclusion(workers)
    seclusion.ask(True, 0.0)
    assert seclusion.ask(False, 1.0) is None
    assert [place.alone for place in workers] == [0, 0]


def test_who_runs_some_is_not_asked_and_half_of_them_are_left_to_other_work() -> None:
    workers = places(0, 0, 0, 0)
    seclusion = Seclusion(workers)
    for now, expected in enumerate((0, 1, None)):
        asked = seclusion.ask(True, float(now))
        assert asked == expected
        if asked is not None:
            workers[asked].alone = ALONE


def test_who_is_not_ready_or_ends_is_not_asked() -> None:
    workers = places(0, 1, 2)
    workers[0].ready, workers[1].draining = 0, 1
    assert Seclusion(workers).ask(True, 0.0) == 2


def test_a_fleet_of_one_is_asked_too() -> None:
    [alone] = workers = places(7)
    seclusion = Seclusion(workers)
    assert seclusion.ask(True, 0.0) == 0
    alone.alone = ALONE
    assert seclusion.ask(True, 1.0) is None
