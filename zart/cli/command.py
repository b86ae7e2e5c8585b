"""What every command shares: how it ends, and how it says what is wrong.

Exit codes: 0 done, 1 the thing asked about failed, 2 the command cannot be carried out as it was given. A user's
mistake is one line on stderr; a traceback is a defect of zart.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from typing import Annotated, Any, NoReturn, cast

import asyncpg
import typer

from zart.errors import InvalidArgument, ZartError

DONE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

# The root of typer's errors: BadParameter, UsageError, ClickException. It has no public name in every version of typer.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])


class Failed(Exception):
    """The thing asked about failed: exit code 1, with this line on stderr."""


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run `app` on this process's arguments and exit."""
    sys.exit(code_of(app, program, sys.argv[1:]))


def code_of(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Run `app` on `arguments`; give the exit code. What went wrong is said on stderr, in one line."""
    try:
        code = app(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except _UsageError as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        place = program if context is None else context.command_path
        return _say(place, f"{one_line(error.format_message()).rstrip('.')}; see `{place} --help`", UNUSABLE)
    except Failed as error:
        return _say(program, str(error), FAILED)
    except ZartError as error:
        return _say(program, one_line(str(error)), UNUSABLE)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        return _say(program, f"the database refused: {one_line(str(error))}", UNUSABLE)
    except (KeyboardInterrupt, typer.Abort):
        return _say(program, "interrupted", INTERRUPTED)


def _say(place: str, line: str, code: int) -> int:
    print(f"{place}: {line}", file=sys.stderr)
    return code


def one_line(text: str) -> str:
    """The text without line ends and characters that steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))


def parse_json(text: str, option: str) -> Any:
    """The value of a JSON text given on the command line.

    Raises:
        InvalidArgument: it is no JSON; the message says where and how to quote it.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidArgument(
            f'{option} is not JSON: {reason}; quote it for the shell, as in {option} \'{{"name": "value"}}\''
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("zart")
        except importlib.metadata.PackageNotFoundError:
            version = "from a directory that is not installed"
        print(f"zart {version}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
