"""A kept result as a picture: what a second brings, and what an execution costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zart.cli import figure
from zart.errors import InvalidArgument

SIDES = ("floor", "engine")

_COSTS = (
    ("PostgreSQL", "server_cpu_us", figure.BLUE),
    ("workers", "worker_cpu_us", figure.ORANGE),
    ("supervisor", "supervisor_cpu_us", figure.GREEN),
)


def draw(file: Path) -> Path:
    """Draw a result beside its file; give the file with the figure.

    Raises:
        InvalidArgument: the file holds no result, or the figure cannot be written.
    """
    target = file.with_suffix(".svg")
    figure.check_can_write(target, "the figure")
    kept = _read(file)
    title = f"{kept['scenario']}: {kept['executions']:,} executions, {kept['procs']} processes, median of repeats"
    with figure.drawn(target, title, 2, beside=True) as (rates, costs):
        rates.set_title("executions per second")
        rates.yaxis.set_major_formatter("{x:,.0f}")
        middles = [kept["medians"][side]["executions_per_second"] for side in SIDES]
        bars = rates.bar(SIDES, middles, width=0.5, color=figure.BLUE)
        rates.bar_label(bars, fmt="{:,.0f}", label_type="center", color="#ffffff")
        found = [(side, repeat[side]["executions_per_second"]) for side in SIDES for repeat in kept["repeats"]]
        rates.scatter(
            [side for side, _ in found],
            [rate for _, rate in found],
            color=figure.ORANGE,
            s=14,
            zorder=3,
            label="each repeat",
        )
        rates.legend(loc="upper right")
        costs.set_title("processor time per execution, microseconds")
        below = dict.fromkeys(SIDES, 0.0)
        for name, field, color in _COSTS:
            values = [kept["medians"][side][field] for side in SIDES]
            costs.bar(SIDES, values, width=0.5, bottom=list(below.values()), color=color, label=name)
            below = {side: below[side] + value for side, value in zip(SIDES, values, strict=True)}
        costs.legend(loc="upper left")
        for panel in (rates, costs):
            panel.grid(axis="x", visible=False)
            panel.set_ylim(0, 1.15 * panel.dataLim.ymax)
    return target


def _read(file: Path) -> dict[str, Any]:
    try:
        kept = json.loads(file.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidArgument(f"{file} is no JSON: {error}") from None
    if not isinstance(kept, dict) or not {"scenario", "medians", "repeats"} <= kept.keys():
        raise InvalidArgument(f"{file} is no result of `python -m bench run`")
    return kept
