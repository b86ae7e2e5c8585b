"""Places: counters and histograms in shared words."""

from __future__ import annotations

import itertools
import mmap
import os
import random

import pytest

from zart import meters
from zart.meters import EXECUTIONS_COMPLETED, STEP_DURATION, STEPS_COMPLETED, TASK_COUNTERS, TASK_HISTOGRAMS
from zart.metrics import MOST_THREADS, Place, merged, observed, quantile, total
from zart.tally import MOST_TASKS, OTHER, ROW_WORDS, named_rows
from zart.tally import ROWS_START as ROWS


def test_counters_are_summed_over_places() -> None:
    places = [Place.private() for _ in range(3)]
    for n, place in enumerate(places):
        place.add(meters.TICKS, n + 1)
    assert total(places, meters.TICKS) == 6
    assert total(places, meters.RECONNECTS) == 0


def test_what_is_counted_per_task_is_summed_over_tasks_too() -> None:
    places = [Place.private(), Place.private()]
    for place, name in itertools.product(places, ("a", "b", OTHER)):
        place.words[place.tally_of(name) + EXECUTIONS_COMPLETED] += 2
        place.observe(STEP_DURATION, 0.5, place.tally_of(name))
    assert total(places, EXECUTIONS_COMPLETED) == 12
    assert merged(places, STEP_DURATION)[STEP_DURATION.bounds.index(1.0)] == 6
    assert observed(places, STEP_DURATION) == pytest.approx(3.0)


def test_counters_survive_the_worker_that_made_them() -> None:
    place = Place.private()
    place.worker_id, place.executing, place.held, place.slots = 2**63 - 1, 7, 3, 256
    tally = place.tally_of("task")
    place.add(tally + EXECUTIONS_COMPLETED, 5)
    place.observe(meters.TICK_DURATION, 0.002)
    place.note_thread(9, 5)
    place.note_step("long")
    place.clear()
    assert (place.worker_id, place.executing, place.held, place.slots) == (0, 0, 0, 0)
    assert (place.running(), place.step) == ([], "")
    assert total([place], EXECUTIONS_COMPLETED) == 5
    assert sum(merged([place], meters.TICK_DURATION)) == 1
    assert place.tally_of("task") == tally


def test_rows_of_the_table_do_not_overlap() -> None:
    place = Place.private()
    tallies = [place.tally_of(f"task {n}") for n in range(MOST_TASKS)] + [0]
    for counter in meters.COUNTERS:
        place.add(counter.offset)
    for histogram in meters.HISTOGRAMS:
        place.observe(histogram, 1e9)
        place.observe(histogram, 0.0)
    for tally in tallies:
        for counter in TASK_COUNTERS:
            place.add(tally + counter.offset)
        for histogram in TASK_HISTOGRAMS:
            place.observe(histogram, 1e9, tally)
            place.observe(histogram, 0.0, tally)
    assert [place.words[counter.offset] for counter in meters.COUNTERS] == [1] * len(meters.COUNTERS)
    assert [total([place], counter.offset) for counter in TASK_COUNTERS] == [len(tallies)] * len(TASK_COUNTERS)
    for histogram in (*meters.HISTOGRAMS, *TASK_HISTOGRAMS):
        times = len(tallies) if histogram in TASK_HISTOGRAMS else 1
        buckets = merged([place], histogram)
        assert (buckets[0], buckets[-1], sum(buckets)) == (times, times, 2 * times)
        assert observed([place], histogram) == pytest.approx(times * 1e9)
    assert TASK_HISTOGRAMS[-1].end <= ROWS + ROW_WORDS
    assert meters.HISTOGRAMS[-1].end < ROWS
    assert [name for _, name in named_rows(place.words)] == [f"task {n}" for n in range(MOST_TASKS)]
    assert place.running() == []


def test_tasks_without_room_are_counted_as_other() -> None:
    place = Place.private()
    for n in range(MOST_TASKS):
        assert place.tally_of(str(n)) == (n + 1) * ROW_WORDS
    assert [place.tally_of("one more"), place.tally_of(OTHER), place.tally_of("7")] == [0, 0, 8 * ROW_WORDS]


@pytest.mark.parametrize("name", ["o" * 512, "ß" * 256, '"\n\\', "\u2028", " ", OTHER + " "])
def test_the_next_worker_of_a_place_finds_a_row_by_its_name(name: str) -> None:
    place = Place.private()
    place.tally_of("first")
    tally = place.tally_of(name)
    heir = Place(place.words.cast("B"))
    assert heir.tally_of(name) == tally > 0
    assert [found for _, found in named_rows(heir.words)] == ["first", name]
    assert [found for _, found in named_rows(heir.words, 1)] == [name]


def test_a_name_that_was_not_written_to_its_end_leaves_no_row() -> None:
    """A worker may be killed at any moment: the count of names comes last."""
    place = Place.private()
    place.tally_of("whole")
    before = bytes(place.words)
    place.tally_of("torn")
    half = bytearray(place.words)
    at = next(at for at in range(len(half)) if half[at] != before[at] and at < ROWS * 8)
    half[at] = before[at]
    heir = Place(half)
    assert [name for _, name in named_rows(heir.words)] == ["whole"]
    assert heir.tally_of("another") == 2 * ROW_WORDS
    assert [name for _, name in named_rows(heir.words)] == ["whole", "another"]


def test_tries_are_counted_with_their_durations() -> None:
    place = Place.private()
    tally = place.tally_of("task")
    place.count_all(STEPS_COMPLETED, STEP_DURATION, [1e6, 0.001], tally)
    place.count_all(STEPS_COMPLETED, STEP_DURATION, [0.0011, 0.0], tally)
    assert place.words[tally + STEPS_COMPLETED] == 4
    buckets = merged([place], STEP_DURATION)
    assert (buckets[:2], buckets[-1]) == ([2, 1], 1)
    assert observed([place], STEP_DURATION) == pytest.approx(1e6 + 0.0021)


def test_many_tries_at_once_are_counted_as_one_by_one() -> None:
    chance, at_once, one_by_one = random.Random(5), Place.private(), Place.private()
    seconds = [chance.lognormvariate(0, 5) for _ in range(1000)] + [*STEP_DURATION.bounds]
    for second in seconds:
        one_by_one.observe(STEP_DURATION, second)
    at_once.count_all(STEPS_COMPLETED, STEP_DURATION, seconds, 0)
    assert merged([at_once], STEP_DURATION) == merged([one_by_one], STEP_DURATION)
    assert observed([at_once], STEP_DURATION) == pytest.approx(observed([one_by_one], STEP_DURATION))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_quantile_is_within_a_bucket_of_the_true_one(q: float) -> None:
    chance = random.Random(7)
    seconds = sorted(chance.lognormvariate(-4, 1.5) for _ in range(10_000))
    place = Place.private()
    for value in seconds:
        place.observe(meters.CLAIM_LATENCY, value)
    found = quantile(merged([place], meters.CLAIM_LATENCY), q)
    assert found is not None
    assert 0.75 < found / seconds[int(q * len(seconds))] < 1.34


def test_a_quantile_of_nothing_is_none() -> None:
    assert quantile(merged([Place.private()], meters.CLAIM_LATENCY), 0.5) is None


def test_a_value_over_every_bound_reads_as_the_last_bound() -> None:
    place = Place.private()
    place.observe(meters.CLAIM_LATENCY, 1e6)
    assert quantile(merged([place], meters.CLAIM_LATENCY), 0.5) == meters.BOUNDS[-1]


def test_running_names_the_loop_and_the_threads() -> None:
    place = Place.private()
    place.executing = 5
    place.note_thread(0, 11)
    place.note_thread(MOST_THREADS - 1, 12)
    assert place.running() == [5, 11, 12]
    place.note_thread(0, 0)
    assert place.running() == [5, 12]


def test_a_worker_that_leaves_by_itself_names_nobody() -> None:
    place = Place.private()
    place.executing = 5
    place.note_thread(3, 11)
    place.leave()
    assert (place.running(), place.draining) == ([], 1)


@pytest.mark.parametrize(("name", "kept"), [("crunch", "crunch"), ("", ""), ("ß" * 300, "ß" * 256)])
def test_the_step_begun_last_is_kept_up_to_a_length(name: str, kept: str) -> None:
    place = Place.private()
    place.note_step("another one")
    place.note_step(name)
    assert place.step == kept
    assert (place.words[meters.TICKS], place.running()) == (0, [])


def test_a_place_in_shared_memory_is_seen_after_a_fork() -> None:
    with mmap.mmap(-1, Place.size()) as memory:
        view = memoryview(memory)
        place = Place(view)
        child = os.fork()
        if child == 0:
            place.add(place.tally_of("task") + EXECUTIONS_COMPLETED, 3)
            os._exit(0)
        os.waitpid(child, 0)
        assert total([place], EXECUTIONS_COMPLETED) == 3
        place.words.release()
        view.release()


def test_a_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a place needs"):
        Place(bytearray(8))


def test_no_sum_is_ever_too_large_to_be_kept() -> None:
    place = Place.private()
    tally = place.tally_of("task")
    for _ in range(100):
        place.observe(STEP_DURATION, 1e18, tally)
        place.observe_all(STEP_DURATION, [float("inf")] * 100, tally)
    assert merged([place], STEP_DURATION)[-1] == 100 + 100 * 100
    assert place.words[tally + STEP_DURATION.sum_at] == 2**63 - 1
