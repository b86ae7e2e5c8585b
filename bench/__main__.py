"""`python -m bench`: what can be measured, and measuring it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench import growth, measure, native, plots, report
from bench.rig import BenchError
from bench.scenarios import SCENARIOS
from zart.cli.command import code_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)


@app.command("list")
def list_scenarios() -> None:
    """What can be measured."""
    table = Table("name", "question", "executions", box=None, pad_edge=False)
    for scenario in SCENARIOS.values():
        table.add_row(scenario.name, scenario.question, f"{scenario.executions:,}")
    Console(highlight=False).print(table)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A scenario of `list`.")],
    executions: Annotated[int | None, typer.Option(min=1, metavar="N", help="Executions per drain.")] = None,
    procs: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Processes, for floor and engine alike.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="How often floor and engine take turns.")] = 3,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Executions per statement of the floor.")] = 500,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where the JSON file goes.")] = report.RESULTS,
) -> None:
    """Measure the engine against the raw floor, print a table and keep the numbers as JSON.

    Example: python -m bench run five-step --executions 100000
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise typer.BadParameter(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}", param_hint="NAME")
    result = measure.run(
        scenario,
        executions=executions or scenario.executions,
        procs=procs,
        repeats=repeats,
        batch=batch,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    report.show(result)
    print(f"kept in {report.keep(result, results).name}")


@app.command()
def plot(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Results as JSON; by default all that are kept.")
    ] = None,
) -> None:
    """Draw results: FILE.svg beside each FILE.json.

    Example: python -m bench plot bench/results/five-step-*.json
    """
    for file in files or sorted(report.RESULTS.glob("*.json")):
        print(f"drawn in {plots.draw(file).name}")


@app.command("native")
def show_native() -> None:
    """Time the native module's calls in one five-step execution."""
    table = Table("call", "calls", "ns each", "us/execution", box=None, pad_edge=False)
    parts = native.parts()
    for part in parts:
        table.add_row(part.name, str(part.calls), f"{part.nanoseconds:.0f}", f"{part.microseconds:.2f}")
    table.add_row("together", "", "", f"{sum(part.microseconds for part in parts):.2f}")
    Console(highlight=False).print(table)


@app.command("growth")
def show_growth(
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="How often each is run; the median counts.")] = 3,
) -> None:
    """Time executions of 10, 1,000 and 10,000 steps or children: what does one cost, and does it grow?"""
    table = Table("execution", "slots", "steps or children", "seconds", "us each", box=None, pad_edge=False)
    for point in growth.points(repeats):
        seconds = " ".join(f"{each:.3f}" for each in point.seconds)
        table.add_row(point.what, str(point.slots), f"{point.count:,}", seconds, f"{point.microseconds:.0f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    try:
        sys.exit(code_of(app, "python -m bench", sys.argv[1:]))
    except BenchError as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        sys.exit(1)
