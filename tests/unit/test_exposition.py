"""What a scrape gets of the board: sums, names, speed, and text that parsers read back."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from zart import meters
from zart.metrics import Place, total
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.exposition import BoardCollector, UserMetrics
from zart.runner.values import DIRECTORY, SharedValues
from zart.tally import MOST_TASKS, OTHER

HOSTILE = [
    'quo"te', "new\nline", "back\\slash", "\\n", "\\", '\\"', '"} 1\nzart_workers{state="', "x" * 512, "ß" * 256, " ",
    "\t", "\r\n", "\u2028\u0085\x0b\x0c\x1c", "\u200b", "{step}", "# HELP", "NaN", "👻", "\x7f\x01", "le", "task=",
]  # fmt: skip


def page(board: Board) -> str:
    registry = CollectorRegistry()
    registry.register(BoardCollector(board))
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a page says, by name and labels; nothing is said twice."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def of(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, tuple(sorted(labels.items()))))


def ended(place: Place, task: str, times: int = 1) -> None:
    place.add(meters.TICKS)
    place.add(place.tally_of(task) + meters.EXECUTIONS_COMPLETED, times)


def test_counters_are_sums_over_places_that_are_alive_and_dead() -> None:
    board = Board(5)
    for index, place in enumerate(board.places[:3]):
        ended(place, "a", index + 1)
        ended(place, f"only {index}", 1)
        place.add(meters.CLAIMS_LOST, 2)
    board.places[1].clear()
    board.header[header.DEATHS] = 1
    text = page(board)
    assert of(text, "zart_executions_ended_total", task="a", outcome="completed") == 6
    assert of(text, "zart_executions_ended_total", task="a", outcome="failed") == 0
    assert of(text, "zart_executions_ended_total", task="only 1", outcome="completed") == 1
    assert of(text, "zart_executions_ended_total", task=OTHER, outcome="completed") is None
    assert of(text, "zart_claims_lost_total") == 6
    assert of(text, "zart_worker_deaths_total") == 1


def test_histograms_are_cumulative_and_in_seconds() -> None:
    board = Board(2)
    for place, seconds in zip(board.places, (0.002, 5.0), strict=True):
        place.add(meters.TICKS)
        place.observe(meters.STEP_DURATION, seconds, place.tally_of("a"))
        place.observe(meters.TICK_ROWS, 3)
    text = page(board)
    assert of(text, "zart_step_duration_seconds_count", task="a") == 2
    assert of(text, "zart_step_duration_seconds_sum", task="a") == pytest.approx(5.002)
    assert of(text, "zart_step_duration_seconds_bucket", task="a", le="0.001") == 0
    assert of(text, "zart_step_duration_seconds_bucket", task="a", le="0.003") == 1
    assert of(text, "zart_step_duration_seconds_bucket", task="a", le="10.0") == 2
    assert of(text, "zart_step_duration_seconds_bucket", task="a", le="+Inf") == 2
    assert of(text, "zart_tick_rows_sum") == 6


def test_gauges_tell_of_the_living_only() -> None:
    board = Board(5)
    for place in board.places[:4]:
        place.pid, place.slots, place.held = 1, 100, 7
    for place in board.places[1:4]:
        place.ready = 1
    board.places[3].draining = 1
    text = page(board)
    assert [of(text, "zart_workers", state=state) for state in ("starting", "ready", "draining")] == [1, 2, 1]
    assert (of(text, "zart_executions_in_flight"), of(text, "zart_slots")) == (28, 200)
    board.places[2].previous_id = 5  # it registers anew
    text = page(board)
    assert [of(text, "zart_workers", state=state) for state in ("ready", "reconnecting")] == [1, 1]
    assert of(text, "zart_slots") == 100
    board.places[2].previous_id = 0
    board.places[1].clear()
    text = page(board)
    assert [of(text, "zart_workers", state=state) for state in ("starting", "ready", "draining")] == [1, 1, 1]
    assert (of(text, "zart_executions_in_flight"), of(text, "zart_slots")) == (21, 100)


@pytest.mark.parametrize("name", HOSTILE)
def test_any_task_name_is_read_back_as_it_is(name: str) -> None:
    board = Board(1)
    ended(board.places[0], name, 3)
    text = page(board)
    assert of(text, "zart_executions_ended_total", task=name, outcome="completed") == 3
    assert len({line for line in text.split("\n") if line.startswith("# TYPE zart_executions_ended")}) == 1


def test_names_without_room_stay_with_the_others_whoever_collects() -> None:
    """Each place has room for 64 names, and so has the page: the names that were met first stay."""
    board, chance = Board(2), random.Random(3)
    names = [f"task {n}" for n in range(2 * MOST_TASKS)]
    for place, own in zip(board.places, (names[:MOST_TASKS], names[MOST_TASKS // 2 :]), strict=True):
        for name in own:
            ended(place, name, 1 + chance.randrange(9))
    known = {dict(labels)["task"] for name, labels in samples(page(board)) if name == "zart_executions_claimed_total"}
    assert known == {*names[:MOST_TASKS], OTHER}
    whole = sum(value for (name, _), value in samples(page(board)).items() if name == "zart_executions_ended_total")
    assert whole == total(board.places, meters.EXECUTIONS_COMPLETED)
    assert page(board) == page(board)


def test_a_name_never_leaves_its_series_for_that_of_the_others() -> None:
    board = Board(3)
    collector = BoardCollector(board)
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for n in range(3 * MOST_TASKS):
        ended(board.places[n % 3], f"task {n // 2}")
        if n % 10 == 0:
            now = _values(collector.collect())
            assert all(now.get(key, -1.0) >= value for key, value in before.items()), n
            before = now


def _values(families: Iterable[Metric]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        if family.type == "counter"
        for sample in family.samples
    }


def test_64_places_with_64_tasks_are_rendered_within_50_ms() -> None:
    """By processor time, so that others on the machine do not count."""
    board = Board(64)
    for place in board.places:
        place.pid = place.ready = 1
        place.add(meters.TICKS, 10**9)
        for n in range(MOST_TASKS):
            tally = place.tally_of(f"a task of an ordinary name {n}")
            for counter in meters.TASK_COUNTERS:
                place.add(tally + counter.offset, 10**9 + n)
            for histogram in meters.TASK_HISTOGRAMS:
                for bound in histogram.bounds:
                    place.observe(histogram, bound, tally)
    registry = CollectorRegistry()
    registry.register(BoardCollector(board))
    took: list[float] = []
    for _ in range(10):
        began = time.process_time()
        text = generate_latest(registry)
        took.append(time.process_time() - began)
    print(f"{len(text):,} bytes in {min(took) * 1e3:.1f} to {max(took) * 1e3:.1f} ms")
    assert len(samples(text.decode())) > 50 * MOST_TASKS
    assert min(took) < 0.05


def test_rooms_that_nobody_uses_take_no_memory() -> None:
    """Of 512 places only the page is there on which each is seen to be empty."""
    code = (
        "from zart.runner.board import Board; from zart.runner.exposition import BoardCollector;"
        "board = Board(512); list(BoardCollector(board).collect());"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('RssShmem')))"
    )
    kib = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(kib) <= 512 * 4 + 16
    assert Place.size() * 512 > 20 * 2**20


def test_the_documentation_names_exactly_what_is_exported() -> None:
    """Those of queues are another collector's."""
    row = re.compile(r"^\| `(zart_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    written = {
        name: (kind, {label.strip(" `") for label in labels.split(",")} - {""})
        for name, kind, labels in row.findall(page)
        if not name.startswith("zart_queue_")
    }
    board = Board(1)
    ended(board.places[0], "a")
    exported: dict[str, tuple[str, set[str]]] = {}
    for family in BoardCollector(board).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in exported
        exported[name] = family.type, {label for sample in family.samples for label in sample.labels} - {"le"}
    assert written == exported


@pytest.fixture
def values(shared: Path) -> Iterator[SharedValues]:
    """This process is the worker of the first place."""
    values = SharedValues()
    values.sit(0)
    yield values
    values.close()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the application's own metrics."""
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("values")
def test_the_applications_metrics_are_shown_but_those_that_break_the_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    prometheus_client.Counter("app_good", "Good.", registry=registry).inc(3)
    prometheus_client.Counter("app_hostile", "Half of a pair.", ["text"], registry=registry).labels("\ud800").inc()
    prometheus_client.Gauge("zart_workers", "Not zart's.", registry=registry).set(99)
    users = UserMetrics()
    for _ in range(2):
        assert [family.name for family in users.collect()] == ["app_good"]
    told = sorted(record.getMessage().partition(" is left out")[0] for record in caplog.records)
    assert told == ["the application's metric 'app_hostile'", "the application's metric 'zart_workers'"]


@pytest.mark.usefixtures("values")
def test_a_file_that_is_being_made_hides_no_other(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    prometheus_client.Counter("app_good", "Good.", registry=CollectorRegistry()).inc()
    (shared / "counter_1.db").touch()
    assert [family.name for family in UserMetrics().collect()] == ["app_good"]
    assert caplog.records == []


def test_a_file_that_cannot_be_read_leaves_the_rest_of_the_page(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shared / "counter_1.db").write_bytes(b"\xff\xff\xff\x0fjunk" * 10)
    users = UserMetrics()
    assert [list(users.collect()), list(users.collect())] == [[], []]
    [record] = caplog.records
    assert record.getMessage().startswith("the application's own metrics cannot be read")


def test_the_next_worker_of_a_place_goes_on_with_its_values(shared: Path, values: SharedValues) -> None:
    for _ in range(2):
        child = os.fork()
        if child == 0:
            values.sit(1)
            registry = CollectorRegistry()
            prometheus_client.Counter("app_work", "Work.", registry=registry).inc()
            prometheus_client.Gauge("app_now", "Now.", multiprocess_mode="livesum", registry=registry).inc()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert _shown()["app_now"] == 1
        values.forget(1)
    assert _shown() == {"app_work_total": 2}
    assert {path.name for path in shared.iterdir()} == {"counter_1.db"}


@pytest.mark.usefixtures("values")
def test_a_process_that_user_code_forks_has_files_of_its_own(shared: Path) -> None:
    counter = prometheus_client.Counter("app_work", "Work.", registry=CollectorRegistry())
    child = os.fork()
    if child == 0:
        counter.inc()
        os._exit(0)
    os.waitpid(child, 0)
    counter.inc()
    assert _shown() == {"app_work_total": 2}
    assert {path.name for path in shared.iterdir()} == {"counter_0.db", f"counter_0-{child}.db"}


def _shown() -> dict[str, float]:
    return {sample.name: sample.value for family in UserMetrics().collect() for sample in family.samples}
