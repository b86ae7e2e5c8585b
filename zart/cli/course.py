"""The course of the demo, noted while it runs and drawn when it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from zart.cli import figure
from zart.cli.display import claims_by_latency, completed
from zart.cli.output import counted
from zart.metrics import quantile
from zart.runner.board import Board

_INTERVAL = 0.25  # workers end many at once: shorter ones show that and nothing else
_MOST_POINTS = 120


@dataclass(frozen=True, slots=True)
class Moment:
    """What the workers had counted at one moment: how many executions completed, and the buckets of claim latency."""

    at: float
    done: int
    claims: tuple[int, ...]


class Course:
    """Moments of one drain, a quarter of a second apart.

    Attributes:
        moments: so far, the first one from when it was made.
        killed_at: when a worker was killed.
        held: how many executions it held.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self.killed_at: float | None = None
        self.held = 0
        self.moments = [self._moment()]

    def note(self, *, at_once: bool = False) -> None:
        """Note this moment, if it is time to."""
        if at_once or time.monotonic() >= self.moments[-1].at + _INTERVAL:
            self.moments.append(self._moment())

    def note_kill(self, held: int) -> None:
        """Note that a worker is killed now, and what it held."""
        self.killed_at, self.held = time.monotonic(), held

    def _moment(self) -> Moment:
        return Moment(time.monotonic(), completed(self._board), tuple(claims_by_latency(self._board)))


def draw(course: Course, executions: int, path: Path) -> None:
    """Write the course as SVG: throughput and claim latency over time, with the kill marked."""
    began, moments = course.moments[0].at, _thinned(course.moments)
    times: list[float] = []
    rates: list[float] = []
    middles: list[float | None] = []
    highs: list[float | None] = []
    for before, after in pairwise(moments):
        claims = [now - then for now, then in zip(after.claims, before.claims, strict=True)]
        times.append(after.at - began)
        rates.append((after.done - before.done) / (after.at - before.at))
        middles.append(quantile(claims, 0.5))
        highs.append(quantile(claims, 0.99))
    with figure.drawn(path, f"zart demo: {counted(executions, 'execution')} of five steps", 2) as (upper, lower):
        upper.set_title("throughput, executions per second")
        upper.yaxis.set_major_formatter("{x:,.0f}")
        upper.plot(times, rates, color=figure.BLUE, drawstyle="steps-pre")
        lower.set_title("claim latency, seconds: from when an execution could run to its claim")
        lower.plot(times, _gaps(highs), color=figure.ORANGE, label="p99", marker=".")
        lower.plot(times, _gaps(middles), color=figure.BLUE, label="p50", marker=".")
        lower.legend(loc="upper left")
        lower.set_xlabel("seconds since the workers were started")
        for panel, values in ((upper, rates), (lower, highs)):
            top = 1.15 * max(filter(None, values), default=1.0)
            panel.set_xlim(0, times[-1])
            panel.set_ylim(0, top)
            if course.killed_at is not None:
                panel.axvline(course.killed_at - began, color=figure.RED, linestyle="--")
        if course.killed_at is not None:
            style = {"color": figure.RED, "textcoords": "offset points", "va": "top"}
            place = (course.killed_at - began, upper.get_ylim()[1])
            upper.annotate(f"worker killed, holding {course.held:,}", place, xytext=(5, 0), **style)


def _thinned(moments: list[Moment]) -> list[Moment]:
    """About as many as a figure can show."""
    every = -(-len(moments) // _MOST_POINTS)
    return [*moments[:-1:every], moments[-1]]


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
