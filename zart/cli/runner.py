"""`zart-runner`: serve an application's durable functions with a fleet of worker processes."""

from __future__ import annotations

import enum
import os
import sys
from typing import Annotated, NoReturn

import typer

from zart.cli.command import Version, code_of
from zart.cli.database import DatabaseUrl, Embedded, Schema, SchemaDefault, opened, with_default_directory
from zart.config import WorkerConfig
from zart.errors import InvalidArgument
from zart.runner.arbiter import run
from zart.runner.options import RunnerOptions

_WORKERS = "Workers"
_DEFAULTS = WorkerConfig()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class LogFormat(enum.StrEnum):
    """How log lines look."""

    CONSOLE = "console"
    JSON = "json"


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def runner(
    target: Annotated[
        str,
        typer.Option(
            "--app",
            metavar="MODULE[:REGISTRY]",
            help="A module whose durable functions and steps are served, or a TaskRegistry in it.",
        ),
    ],
    procs: Annotated[
        int, typer.Option(metavar="N", help="Worker processes; by default one per core.", show_default=False)
    ] = len(os.sched_getaffinity(0)),
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    concurrency: Annotated[
        int, typer.Option(metavar="N", help="Executions in memory per process.", rich_help_panel=_WORKERS)
    ] = _DEFAULTS.max_concurrent_tasks,
    queues: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Serve only these queues; by default all.", rich_help_panel=_WORKERS),
    ] = None,
    lease_timeout: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="How long a host may be unheard of before others take its work over.",
            rich_help_panel=_WORKERS,
        ),
    ] = "15s",
    poll_interval: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="Longest time ready work goes unseen without hints.", rich_help_panel=_WORKERS
        ),
    ] = "1s",
    shutdown_timeout: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="How long running steps may go on after SIGTERM.", rich_help_panel=_WORKERS
        ),
    ] = "30s",
    preload: Annotated[
        bool,
        typer.Option("--preload", help="Import the app once, before the workers are forked.", rich_help_panel=_WORKERS),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Log lines for people or for machines.", rich_help_panel=_WORKERS)
    ] = LogFormat.CONSOLE,
    version: Version = False,
) -> None:
    """Run durable functions with a fleet of worker processes, until SIGTERM.

    SIGTERM drains: running steps end, the rest is handed back. A second one kills the workers and loses nothing.

    Example: zart-runner --procs 16 --app myapp.workflows --database-url postgresql://zart@db/app
    """
    config = WorkerConfig(
        max_concurrent_tasks=concurrency,
        lease_timeout=lease_timeout,
        poll_interval=poll_interval,
        shutdown_timeout=shutdown_timeout,
        queues=None if queues is None else _names(queues),
    )
    RunnerOptions(dsn="", app=target, procs=procs)  # refused before a database is started for it
    with opened(database_url, embedded, schema) as dsn:
        code = run(
            RunnerOptions(
                dsn=dsn,
                app=target,
                procs=procs,
                schema=schema,
                config=config,
                preload=preload,
                log_format=log_format.value,
            )
        )
    raise typer.Exit(code)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise InvalidArgument(f"--queues must be names with commas between them, as default,mail; got {text!r}")
    return names


def main() -> NoReturn:
    """Entry point of `zart-runner`."""
    sys.exit(code_of(app, "zart-runner", with_default_directory(sys.argv[1:])))
