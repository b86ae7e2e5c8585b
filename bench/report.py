"""How a result is shown and kept: a table for people, a JSON file for comparison."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import MOST_OTHER_CORES, Result, Side, values_of

RESULTS = Path(__file__).parent / "results"

# Title, field of a measurement, digits after the point.
_ROWS = (
    ("executions/s", "executions_per_second", 0),
    ("durable steps/s", "steps_per_second", 0),
    ("server CPU, us/execution", "server_cpu_us", 1),
    ("worker CPU, us/execution", "worker_cpu_us", 1),
    ("supervisor CPU, us/execution", "supervisor_cpu_us", 2),
    ("WAL, bytes/execution", "wal_bytes", 0),
    ("commits/execution", "commits", 4),
    ("statements/execution", "statements", 4),
    ("rows written/execution", "rows_written", 2),
    ("rows/tick", "rows_per_tick", 1),
    ("tick p50, ms", "tick_ms", 2),
    ("claim latency p50, s (queued)", "claim_latency_p50_s", 2),
    ("claim latency p99, s (queued)", "claim_latency_p99_s", 2),
    ("other programs, cores", "other_cores", 2),
)


def show(result: Result) -> None:
    """Print the table: medians over the repeats, with least and most."""
    size = f"{result.executions:,} executions, {result.procs} processes, {len(result.repeats)} repeats"
    table = Table(
        "",
        "floor",
        "engine",
        "engine / floor",
        title=f"{result.scenario}: {size}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, field, digits in _ROWS:
        floor, engine = (_cell(result, side, field, digits) for side in ("floor", "engine"))
        if (floor or engine) and (result.steps_per_execution or field != "steps_per_second"):
            table.add_row(name, floor, engine, _share(result, field))
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    console.print(table)
    pairs = ", ".join(f"{ratio:.3f}" for ratio in result.ratios)
    console.print(f"floor_ratio {result.floor_ratio:.3f}  (pairs: {pairs})")
    if result.noisy:
        console.print(f"NOISY: others used more than {MOST_OTHER_CORES:g} cores; repeat this on an idle machine")


def keep(result: Result, directory: Path = RESULTS) -> Path:
    """Write the result as JSON, named by scenario and date; give the file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.scenario}-{result.date:%Y-%m-%dT%H%M%S}.json"
    kept = {**asdict(result), "medians": {side: _medians(result, side) for side in ("floor", "engine")}}
    path.write_text(json.dumps(kept, indent=2, default=datetime.isoformat) + "\n")
    return path


def _medians(result: Result, side: Side) -> dict[str, float]:
    found = ((field, values_of(result.repeats, side, field)) for _, field, _ in _ROWS)
    return {field: statistics.median(values) for field, values in found if values}


def _cell(result: Result, side: Side, field: str, digits: int) -> str:
    values = values_of(result.repeats, side, field)
    if not values:
        return ""
    middle, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})" if len(values) > 1 else middle


def _share(result: Result, field: str) -> str:
    floor, engine = (values_of(result.repeats, side, field) for side in ("floor", "engine"))
    if field == "other_cores" or not floor or not engine or not statistics.median(floor):
        return ""
    return f"{statistics.median(engine) / statistics.median(floor):.2f}"
