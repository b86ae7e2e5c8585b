"""`zart-runner`: serve an application's durable functions with a fleet of worker processes."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import sys
from collections.abc import Generator
from typing import Annotated, NoReturn

import typer

from zart.cli.command import Version, code_of, open_closed_streams, parse_duration, parse_size
from zart.cli.database import DatabaseUrl, Embedded, Schema, SchemaDefault, opened, with_default_directory
from zart.config import WorkerConfig
from zart.errors import InvalidArgument
from zart.runner.arbiter import run
from zart.runner.listener import DEFAULT_HOST
from zart.runner.options import RunnerOptions

_WORKERS = "Workers"
_SUPERVISION = "Supervision"
_POOLER = "Behind a pooler"
_HTTP = "Metrics and health"
_DEFAULTS = WorkerConfig()

# What the settings are called on the command line.
_OPTIONS = {
    "max_concurrent_tasks": "--concurrency",
    "lease_timeout": "--lease-timeout",
    "poll_interval": "--poll-interval",
    "shutdown_timeout": "--shutdown-timeout",
    "max_result_bytes": "--max-result-bytes",
    "trx_pool_size": "--trx-pool-size",
    "listen_url": "--listen-url",
    "procs": "--procs",
    "stall_timeout": "--stall-timeout",
    "max_age": "--max-age",
    "max_executions": "--max-executions",
    "max_rss": "--max-rss",
    "http_port": "--http-port",
}

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
    max_result_bytes: Annotated[
        int, typer.Option(metavar="BYTES", help="Largest stored value, encoded as JSON.", rich_help_panel=_WORKERS)
    ] = _DEFAULTS.max_result_bytes,
    trx_pool_size: Annotated[
        int,
        typer.Option(
            metavar="N", help="Most connections of each worker for steps that call trx().", rich_help_panel=_WORKERS
        ),
    ] = _DEFAULTS.trx_pool_size,
    stall_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long an event loop may be blocked before its worker is reported and killed; by default two"
            " thirds of the lease.",
            rich_help_panel=_SUPERVISION,
        ),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Replace workers that are older; by default none.", rich_help_panel=_SUPERVISION
        ),
    ] = None,
    max_executions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Replace workers that have served so many executions; by default none.",
            rich_help_panel=_SUPERVISION,
        ),
    ] = None,
    max_rss: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Replace workers that need more memory, as 512M or 2G; by default none.",
            rich_help_panel=_SUPERVISION,
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Serve /metrics, /livez, /readyz and /startupz there; 0 takes a free port, which the log names; by"
            " default none.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    http_host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where they are served; 0.0.0.0 is everywhere.", rich_help_panel=_HTTP),
    ] = DEFAULT_HOST,
    listen_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The PostgreSQL server itself, where the database URL leads through a pooler: workers hear of work at"
            " once. Without it they poll.",
            rich_help_panel=_POOLER,
        ),
    ] = None,
    prepared_statements: Annotated[
        bool | None,
        typer.Option(
            "--prepared-statements/--no-prepared-statements",
            help="Keep statements prepared on the server; by default unless a pooler is in between.",
            show_default=False,
            rich_help_panel=_POOLER,
        ),
    ] = None,
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
    SIGHUP reloads the code worker by worker; SIGTTIN and SIGTTOU make the fleet larger and smaller by one.

    Example: zart-runner --procs 16 --app myapp.workflows --database-url postgresql://zart@db/app
    """
    with _naming_options():  # refused before a database is started for it
        config = WorkerConfig(
            max_concurrent_tasks=concurrency,
            lease_timeout=parse_duration(lease_timeout, "--lease-timeout"),
            poll_interval=parse_duration(poll_interval, "--poll-interval"),
            shutdown_timeout=parse_duration(shutdown_timeout, "--shutdown-timeout"),
            queues=None if queues is None else _names(queues),
            max_result_bytes=max_result_bytes,
            trx_pool_size=trx_pool_size,
            prepared_statements=prepared_statements,
            listen_url=listen_url,
        )
        options = RunnerOptions(
            dsn="",
            app=target,
            procs=procs,
            schema=schema,
            config=config,
            preload=preload,
            log_format=log_format.value,
            stall_timeout=_duration_or_none(stall_timeout, "--stall-timeout"),
            max_age=_duration_or_none(max_age, "--max-age"),
            max_executions=max_executions,
            max_rss=None if max_rss is None else parse_size(max_rss, "--max-rss"),
            http_port=http_port,
            http_host=http_host,
        )
    with opened(database_url, embedded, schema) as dsn:
        code = run(dataclasses.replace(options, dsn=dsn))
    raise typer.Exit(code)


@contextlib.contextmanager
def _naming_options() -> Generator[None, None, None]:
    """Have errors that begin with a setting's name begin with its option instead."""
    try:
        yield
    except InvalidArgument as error:
        name, space, rest = str(error).partition(" ")
        raise InvalidArgument(f"{_OPTIONS.get(name, name)}{space}{rest}") from None


def _duration_or_none(text: str | None, option: str) -> float | None:
    return None if text is None else parse_duration(text, option)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise InvalidArgument(f"--queues must be names with commas between them, as default,mail; got {text!r}")
    return names


def main() -> NoReturn:
    """Entry point of `zart-runner`."""
    open_closed_streams()
    sys.exit(code_of(app, "zart-runner", with_default_directory(sys.argv[1:])))
