"""When a worker has lived long enough: by age, by executions served, by memory."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zart.meters import EXECUTIONS_COMPLETED, EXECUTIONS_FAILED, EXECUTIONS_PARKED
from zart.metrics import Place, total
from zart.runner.options import RunnerOptions

_JITTER: Final = 0.1  # a fleet that was started at once is not to be replaced at once
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Life:
    """How long one worker may live.

    Args:
        until: `time.monotonic()`; None for any age.
        most_served: the count of `served` at its place up to which it may live; None for any number.
        most_rss: bytes of memory; None for any size.
        served_before: that count when it was forked.
    """

    until: float | None = None
    most_served: int | None = None
    most_rss: int | None = None
    served_before: int = 0

    def is_over(self, place: Place, now: float) -> str:
        """Why the worker at this place is to be replaced, or ""."""
        if self.until is not None and now >= self.until:
            return "its age"
        count = served(place)
        if self.most_served is not None and count >= self.most_served:
            return f"{count - self.served_before:,} executions served"
        # One that needs more than it may before it has done anything would be replaced for ever, and nothing be done.
        if (
            self.most_rss is not None
            and count > self.served_before
            and (rss := resident_bytes(place.pid)) > self.most_rss
        ):
            return f"{rss / _MIB:,.0f} MiB of memory"
        return ""


def begin_life(options: RunnerOptions, place: Place, now: float) -> Life:
    """The life of a worker that is about to be forked for a place; chance takes up to a tenth off its limits."""
    share = 1 - _JITTER * random.random()
    age, count = options.max_age_seconds, served(place)
    return Life(
        None if age is None else now + age * share,
        None if options.max_executions is None else count + max(1, round(options.max_executions * share)),
        options.max_rss,
        count,
    )


def served(place: Place) -> int:
    """Executions that were ended or put down at a place, by all the workers it ever had."""
    return sum(total([place], counter) for counter in (EXECUTIONS_COMPLETED, EXECUTIONS_FAILED, EXECUTIONS_PARKED))


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM, shared pages included; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
