"""The demo's progress: a live bar on a terminal, a line a second elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zart.meters import CLAIM_LATENCY, EXECUTIONS_COMPLETED, STEPS_COMPLETED
from zart.metrics import merged, quantile, total
from zart.runner.board import Board

_WINDOW = 1.0  # seconds over which the rates are taken
_REFRESH = 0.1
_LINE = 1.0
_BAR_WIDTH = 60


class Display:
    """Shows how far the workers of a board are. Use it in `with`."""

    def __init__(self, board: Board, executions: int, console: Console) -> None:
        self._board, self._executions, self._console = board, executions, console
        self._samples: deque[tuple[float, int, int]] = deque()
        self._shown_at = time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, done: int, *, at_once: bool = False) -> None:
        """Bring the display up to date, if it is time to."""
        now = time.monotonic()
        self._samples.append((now, done, total(self._board.places, STEPS_COMPLETED)))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()
        if not at_once and now - self._shown_at < (_LINE if self._live is None else _REFRESH):
            return
        self._shown_at = now
        count = f"{done:,} of {self._executions:,}"
        if self._live is None:
            self.say(f"{count}  {self._rates()}  {claim_latency(self._board)}")
        else:
            lines = Table.grid()
            lines.add_row(ProgressBar(total=self._executions, completed=done, width=_BAR_WIDTH))
            lines.add_row(Text(f"{count}  {self._rates()}"))
            lines.add_row(Text(claim_latency(self._board)))
            self._live.update(lines, refresh=True)

    def _rates(self) -> str:
        (began, executions, steps), (now, executions_now, steps_now) = self._samples[0], self._samples[-1]
        seconds = max(now - began, 1e-3)
        executions_rate, steps_rate = (executions_now - executions) / seconds, (steps_now - steps) / seconds
        return f"{executions_rate:,.0f} executions/s  {steps_rate:,.0f} steps/s"


def claim_latency(board: Board) -> str:
    """The time from when executions could run to their claim, as text."""
    buckets = claims_by_latency(board)
    middle, high = quantile(buckets, 0.5), quantile(buckets, 0.99)
    return "" if middle is None or high is None else f"claim latency p50 {_brief(middle)}, p99 {_brief(high)}"


def claims_by_latency(board: Board) -> list[int]:
    """How many claims there were, by how long the execution could have run before; for `quantile`."""
    return merged(board.places, CLAIM_LATENCY)


def completed(board: Board) -> int:
    """How many executions the workers have counted as completed; those whose worker died uncounted are missing."""
    return total(board.places, EXECUTIONS_COMPLETED)


def _brief(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
