"""What every command shares: how it ends, and how it says what is wrong.

Exit codes: 0 done, 1 the thing asked about failed, 2 the command cannot be carried out as it was given. A user's
mistake is one line on stderr; a traceback is a defect of zart.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from typing import Annotated, Any, NoReturn, cast

import asyncpg
import typer

import zart
from zart.duration import seconds_of
from zart.errors import InvalidArgument, ZartError
from zart.postgres.url import redacted

DONE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

# The root of typer's errors: BadParameter, UsageError, ClickException. It has no public name in every version of typer.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])

# How stdout fails when it is a file: the disk is full, a quota or a limit is reached, the disk is broken.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# A line may quote what was typed.
_LONGEST_LINE = 1_000

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]+)?)([KMG]?)")
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class Failed(Exception):
    """The thing asked about failed: exit code 1, with this line on stderr."""


def open_closed_streams() -> None:
    """Have what a shell closed (`>&-`) be open on /dev/null, so that no file or socket gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end


def code_of(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Run `app` on `arguments`; give the exit code. What went wrong is said on stderr, in one line."""
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # an id may hold what the terminal's encoding has not
    try:
        code = _code_of(app, program, arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has left
        _drop_output()
        return FAILED
    except OSError as error:
        if error.filename is None and error.errno in _UNWRITABLE:
            _drop_output()
            return _say(program, f"the output cannot be written: {error.strerror}", FAILED)
        return _say(program, f"the system refused: {one_line(str(error))}", FAILED)


def _code_of(app: typer.Typer, program: str, arguments: list[str]) -> int:
    try:
        code = app(arguments, prog_name=program, standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except _UsageError as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        place = program if context is None else context.command_path
        return _say(place, f"{one_line(error.format_message()).rstrip('.')}; see `{place} --help`", UNUSABLE)
    except Failed as error:
        return _say(program, str(error), FAILED)
    except ZartError as error:
        return _say(program, one_line(str(error)), UNUSABLE)
    except BrokenPipeError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
        return _say(program, f"the database refused: {one_line(str(error))}", UNUSABLE)
    except (KeyboardInterrupt, typer.Abort):
        return _say(program, "interrupted", INTERRUPTED)


def _say(place: str, line: str, code: int) -> int:
    line = redacted(line)
    with contextlib.suppress(OSError):  # there is nobody else to tell
        print(f"{place}: {line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + '...'}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Let what is left for stdout go nowhere, or Python would try to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def parse_duration(text: str, option: str) -> float:
    """The seconds of a duration given on the command line: a number with a unit, or seconds without one.

    Raises:
        InvalidArgument: it is no duration; the message names the option and the accepted forms.
    """
    plain = _SECONDS.fullmatch(text.strip())
    try:
        return seconds_of(float(plain[0]) if plain else text, option)
    except InvalidArgument:
        forms = "500ms, 30s, 10m, 2h or 3d, or a number of seconds"
        raise InvalidArgument(f"{option} must be a duration up to 100 years, as {forms}; got {text!r}") from None


def parse_size(text: str, option: str) -> int:
    """The bytes of a size given on the command line: a number with K, M or G for powers of 1024, or bytes without one.

    Raises:
        InvalidArgument: it is no size; the message names the option and the accepted forms.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(f"{option} must be a size, as 512M or 2G, or a number of bytes; got {text!r}")
    return int(float(found[1]) * 1024 ** " KMG".index(found[2] or " "))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"zart {zart.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
