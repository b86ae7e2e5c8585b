"""`zart`: the commands of operators and of the curious."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from zart.cli import executions
from zart.cli.command import UNUSABLE, Version, code_of, open_closed_streams
from zart.cli.database import with_default_directory
from zart.cli.demo import demo
from zart.cli.metrics import metrics
from zart.cli.migrate import migrate
from zart.cli.top import top

app = typer.Typer(
    help="Durable execution on PostgreSQL. `zart-runner` runs your durable functions; this command looks after them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(migrate)
app.command()(executions.start)
app.command()(executions.status)
app.command()(executions.wait)
app.command()(executions.cancel)
app.command()(executions.release)
app.command("list")(executions.list_)
app.command()(executions.history)
app.command()(executions.event)
app.command()(metrics)
app.command()(top)


@app.callback()
def options(version: Version = False) -> None:
    """Durable execution on PostgreSQL."""


def answer(arguments: Sequence[str]) -> int:
    """Carry `arguments` out and give the exit code; without any, show the help."""
    code = code_of(app, "zart", with_default_directory(arguments) or ["--help"])
    return code if arguments else max(code, UNUSABLE)


def main() -> NoReturn:
    """Entry point of `zart`."""
    open_closed_streams()
    sys.exit(answer(sys.argv[1:]))
