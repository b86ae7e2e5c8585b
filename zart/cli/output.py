"""What commands print: tables and lines for people, one JSON value for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zart.cli.command import one_line
from zart.model import ExecutionRecord, StepRecord
from zart.store.journal import RETRYING, WAITING

_WIDEST_VALUE = 60
_WIDEST_ERROR = 300


def print_json(value: Any) -> None:
    """One JSON value, alone on stdout, in UTF-8 whatever the locale is; records become objects, times ISO 8601."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.encode(value, enc_hook=str) + b"\n")


def print_execution(record: ExecutionRecord) -> None:
    """One `name: value` line per field that says something."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value is not None and not (field.name in ("attempt", "crashes", "max_retries", "run") and not value):
            print(f"{field.name + ':':<14} {_shown(field.name, value)}")
        if field.name == "error" and isinstance(value, dict) and "on_failure" in value:
            print(f"{'on_failure:':<14} {error_text(value['on_failure'])}")


def print_executions(records: Sequence[ExecutionRecord]) -> None:
    """A table, newest page order as the database gave it."""
    print_table(
        ("execution", "task", "status", "created", "took"),
        (
            (r.execution_id, r.task_name, r.status.value, _text(r.created_at), took(r.started_at, r.finished_at))
            for r in records
        ),
    )


def print_steps(steps: Sequence[StepRecord], *, ended: bool) -> None:
    """A table of a run's journal, with the failed tries of each step above it.

    Args:
        steps: the journal.
        ended: whether the execution has ended, so that nothing of it waits any more.
    """
    rows: list[tuple[str, ...]] = []
    for step in steps:
        for failed in step.failed_attempts:
            rows.append((step.name, step.kind, "failed try", str(failed.attempt), "", _error(failed.error)))
        shown = _result(step.result) if step.error is None else _error(step.error)
        status = step.status
        if status in (WAITING, RETRYING):  # what the last try failed of stands above
            shown = "for ever" if step.due is None else f"until {step.due:%Y-%m-%d %H:%M:%S} UTC"
            if ended:
                status, shown = "given up", ""
        time = took(step.started_at, step.finished_at)
        rows.append((step.name, step.kind, status, str(step.attempts), time, shown))
    print_table(("name", "kind", "status", "attempt", "took", "result"), rows)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table without frames: fit to a terminal, as wide as it must be in a pipe."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 1000)
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():
        print(line.rstrip())


def took(begin: datetime | None, end: datetime | None) -> str:
    """The time between the two, as `1.234 s`; empty when one is unknown."""
    return "" if begin is None or end is None else f"{(end - begin).total_seconds():.3f} s"


def counted(number: int, noun: str) -> str:
    """`1 execution`, `2,000 executions`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _result(value: Any) -> str:
    return "" if value is None else _cut(json.dumps(value, ensure_ascii=False, default=str), _WIDEST_VALUE)


def _error(error: Any) -> str:
    return "" if error is None else _cut(error_text(error), _WIDEST_ERROR)


def _cut(text: str, widest: int) -> str:
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _shown(name: str, value: Any) -> str:
    match name:
        case "input" | "output":
            return one_line(json.dumps(value, ensure_ascii=False, default=str))
        case "error":
            return error_text(value)
        case _:
            return _text(value)


def error_text(error: Any) -> str:
    """A stored error as one line, `type: message`; the rest of it is for programs."""
    match error:
        case {"type": kind, "message": message}:
            return one_line(f"{kind}: {message}")
        case _:
            return one_line(json.dumps(error, ensure_ascii=False, default=str))


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds")
    return one_line(str(value))
