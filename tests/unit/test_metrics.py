"""Places: counters and histograms in shared words."""

from __future__ import annotations

import mmap
import os
import random

import pytest

from zart import metrics
from zart.metrics import Place


def test_counters_are_summed_over_places() -> None:
    places = [Place.private() for _ in range(3)]
    for n, place in enumerate(places):
        place.add(metrics.TICKS, n + 1)
    assert metrics.total(places, metrics.TICKS) == 6
    assert metrics.total(places, metrics.TICK_ROWS) == 0


def test_counters_survive_the_worker_that_made_them() -> None:
    place = Place.private()
    place.worker_id, place.executing, place.held = 2**63 - 1, 7, 3
    place.add(metrics.EXECUTIONS_COMPLETED, 5)
    place.observe(metrics.TICK_DURATION, 0.002)
    place.note_thread(9, 5)
    place.note_step("long")
    place.clear()
    assert (place.worker_id, place.executing, place.held, place.running(), place.step) == (0, 0, 0, [], "")
    assert metrics.total([place], metrics.EXECUTIONS_COMPLETED) == 5
    assert sum(metrics.merged([place], metrics.TICK_DURATION)) == 1


def test_rows_of_the_table_do_not_overlap() -> None:
    place = Place.private()
    for counter in metrics.COUNTERS:
        place.add(counter.offset)
    for histogram in metrics.HISTOGRAMS:
        place.observe(histogram.offset, 1e9)
        place.observe(histogram.offset, 0.0)
    assert [place.words[counter.offset] for counter in metrics.COUNTERS] == [1] * len(metrics.COUNTERS)
    for histogram in metrics.HISTOGRAMS:
        buckets = metrics.merged([place], histogram.offset)
        assert (buckets[0], buckets[-1], sum(buckets)) == (1, 1, 2)
        assert metrics.seconds_observed([place], histogram.offset) == pytest.approx(1e9)
    assert place.running() == []


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_quantile_is_within_a_bucket_of_the_true_one(q: float) -> None:
    chance = random.Random(7)
    seconds = sorted(chance.lognormvariate(-4, 1.5) for _ in range(10_000))
    place = Place.private()
    for value in seconds:
        place.observe(metrics.CLAIM_LATENCY, value)
    found = metrics.quantile(metrics.merged([place], metrics.CLAIM_LATENCY), q)
    assert found is not None
    assert 0.75 < found / seconds[int(q * len(seconds))] < 1.34


def test_a_quantile_of_nothing_is_none() -> None:
    assert metrics.quantile(metrics.merged([Place.private()], metrics.CLAIM_LATENCY), 0.5) is None


def test_a_value_over_every_bound_reads_as_the_last_bound() -> None:
    place = Place.private()
    place.observe(metrics.EXECUTION_DURATION, 1e6)
    assert metrics.quantile(metrics.merged([place], metrics.EXECUTION_DURATION), 0.5) == metrics.BOUNDS[-1]


def test_running_names_the_loop_and_the_threads() -> None:
    place = Place.private()
    place.executing = 5
    place.note_thread(0, 11)
    place.note_thread(metrics.MOST_THREADS - 1, 12)
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
    assert (place.words[metrics.EXECUTIONS_CLAIMED], place.running()) == (0, [])


def test_a_place_in_shared_memory_is_seen_after_a_fork() -> None:
    with mmap.mmap(-1, Place.size()) as memory:
        view = memoryview(memory)
        place = Place(view)
        child = os.fork()
        if child == 0:
            place.add(metrics.TICKS, 3)
            os._exit(0)
        os.waitpid(child, 0)
        assert metrics.total([place], metrics.TICKS) == 3
        place.words.release()
        view.release()


def test_a_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a place needs"):
        Place(bytearray(8))
