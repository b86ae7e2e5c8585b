"""What a scrape of one runner gets: what its processes have counted on the board, and the application's own metrics.

Nothing here asks the database or a worker: a scrape works while the one is away and the other is busy.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

import zart
from zart.log import logger
from zart.meters import BYTES_WRITTEN, COUNTERS, HISTOGRAMS, START, TASK_COUNTERS, TASK_HISTOGRAMS, Counter, Histogram
from zart.metrics import Place
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.values import DIRECTORY
from zart.tally import MOST_TASKS, OTHER, ROW_WORDS, ROWS_START, named_rows

OWN: Final = "zart_"
"""What the names of zart's own metrics begin with, and no one else's."""

_HEADER: Final = (
    (header.DEATHS, "zart_worker_deaths_total", "Workers that ended though nobody had asked them to."),
    (header.FORKS, "zart_workers_forked_total", "Worker processes made."),
    (header.TAKEN_OVER, "zart_executions_taken_over_total", "Executions freed from workers of this runner that died."),
)

_SIGNS: Final = slice(START, BYTES_WRITTEN + 1)
"""Words of a place of which one is not 0 once anything was counted there."""

_untyped: Any = multiprocess
_log = logger("metrics")


class BoardCollector:
    """What the processes of one runner have counted, summed over its workers, dead ones included.

    At most 64 task names have series of their own: those that were met first. The rest is under "other".

    Args:
        board: of the runner.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._names = [list[tuple[int, str]]() for _ in board.places]

    def collect(self) -> Iterable[Metric]:
        """Collector.collect."""
        about = GaugeMetricFamily("zart_build_info", "The zart that runs.", labels=("version", "python"))
        about.add_metric((zart.__version__, platform.python_version()), 1)
        yield about
        for word, name, text in _HEADER:
            yield CounterMetricFamily(name, text, self._board.header[word])
        # Reading a page makes it, so those of places that were never used are let alone.
        used = [index for index, place in enumerate(self._board.places) if place.pid or any(place.words[_SIGNS])]
        yield from _states([self._board.places[index] for index in used])
        sums = _added([self._board.places[index].words[:ROWS_START].tolist() for index in used])
        yield from _families((*COUNTERS, *HISTOGRAMS), {"": sums or [0] * ROWS_START}, 0)
        yield from _families((*TASK_COUNTERS, *TASK_HISTOGRAMS), self._tasks(used), ROWS_START)

    def _tasks(self, used: Iterable[int]) -> dict[str, list[int]]:
        """The rows of each task, added up over places."""
        rows: dict[str, list[list[int]]] = {OTHER: []}
        since = {OTHER: 0}
        for index in used:
            words, names = self._board.places[index].words, self._names[index]
            names += named_rows(words, len(names))
            counts = words[ROWS_START : ROWS_START + (1 + len(names)) * ROW_WORDS].tolist()
            for row, (first, name) in enumerate([(0, OTHER), *names]):
                rows.setdefault(name, []).append(counts[row * ROW_WORDS : (row + 1) * ROW_WORDS])
                since[name] = min(first, since.get(name, first))
        for name in sorted(since, key=lambda name: since[name])[1 + MOST_TASKS :]:
            rows[OTHER] += rows.pop(name)
        return {name: added for name in rows if any(added := _added(rows[name]))}


def _added(rows: list[list[int]]) -> list[int]:
    return [*map(sum, zip(*rows, strict=True))]


def _states(places: Sequence[Place]) -> Iterable[Metric]:
    """How the workers are that live now."""
    registered = [place for place in places if place.ready and not place.draining]
    ready = [place for place in registered if not place.previous_id]
    counts = {
        "starting": sum(1 for place in places if place.pid and not place.ready and not place.draining),
        "ready": len(ready),
        "reconnecting": len(registered) - len(ready),
        "draining": sum(1 for place in places if place.pid and place.draining),
    }
    workers = GaugeMetricFamily("zart_workers", "Worker processes by state.", labels=("state",))
    for state, count in counts.items():
        workers.add_metric((state,), count)
    yield workers
    held = sum(place.held for place in places)
    yield GaugeMetricFamily("zart_executions_in_flight", "Claims that workers hold.", held)
    slots = sum(place.slots for place in ready)
    yield GaugeMetricFamily("zart_slots", "Claims that the workers that are ready may hold together.", slots)


def _families(table: Iterable[Counter | Histogram], rows: Mapping[str, Sequence[int]], start: int) -> Iterable[Metric]:
    """The families of a table's rows; `rows` are words from `start` on by task, or by "" for what has no task."""
    found: dict[str, Metric] = {}
    for metric in table:
        own = [metric.label] if isinstance(metric, Counter) and metric.label else []
        family = found.get(metric.name)
        if family is None:
            labels = [*(["task"] if "" not in rows else []), *(name for name, _ in own)]
            family = found[metric.name] = _family(metric, labels)
        for task, words in rows.items():
            values = [*([task] if task else []), *(value for _, value in own)]
            at = metric.offset - start
            if isinstance(family, CounterMetricFamily):
                family.add_metric(values, words[at])
            elif isinstance(family, HistogramMetricFamily) and isinstance(metric, Histogram):
                counts = accumulate(words[at : at + len(metric.bounds) + 1])
                buckets = list(zip(_written(metric.bounds), counts, strict=True))
                family.add_metric(values, buckets, words[metric.sum_at - start] * metric.unit)
    return found.values()


def _family(metric: Counter | Histogram, labels: Sequence[str]) -> Metric:
    text = f"{metric.text[0].upper()}{metric.text[1:]}."
    made = CounterMetricFamily if isinstance(metric, Counter) else HistogramMetricFamily
    return made(metric.name, text, labels=labels)


@functools.cache
def _written(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(repr, bounds), "+Inf")


class UserMetrics:
    """The application's own prometheus_client metrics, of all workers together, as far as they can be shown.

    What cannot is left out, and the log says so once.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def collect(self) -> Iterable[Metric]:
        """Collector.collect."""
        directory = os.environ.get(DIRECTORY)
        if directory is None:
            return []
        try:
            files = [file for file in Path(directory).glob("*.db") if _is_filled(file)]
            families: list[Metric] = list(_untyped.MultiProcessCollector.merge(files))
        except Exception as error:  # a file that is torn, or is none of ours
            self._tell(f"the application's own metrics cannot be read ({type(error).__name__}: {error})")
            return []
        return [family for family in families if self._can_be_shown(family)]

    def _can_be_shown(self, family: Metric) -> bool:
        if family.name.startswith(OWN):
            self._tell(f"the application's metric {family.name!r} is left out: {OWN}... are zart's own, so rename it")
            return False
        try:
            generate_latest(_Only(family))
        except Exception as error:  # half a surrogate pair in a label would take the whole page with it
            self._tell(f"the application's metric {family.name!r} is left out: {type(error).__name__}: {error}")
            return False
        return True

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            _log.warning("%s", line)


def _is_filled(file: Path) -> bool:
    """Not one that is being made, or is just gone."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


class _Only(CollectorRegistry):
    """A registry of one family, to render it by itself."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]
