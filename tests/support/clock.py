"""Wall clocks that are wrong: programs are run with a small library that shifts them, and nothing else.

`python -m tests.support.clock +1 pytest tests/functional` runs a command with a clock that is a day ahead. The tests'
server has the true clock.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg

_DAY = 86_400
_SOURCE = Path(__file__).with_suffix(".c")
_PRELOAD, _SHIFT = "LD_PRELOAD", "CLOCK_SHIFT"


def environment(days: int) -> dict[str, str]:
    """Variables for a program whose clock is to be so many days ahead, or behind if negative."""
    return {_PRELOAD: str(_library()), _SHIFT: str(days * _DAY)}


@contextlib.contextmanager
def true_clock() -> Iterator[None]:
    """What is started within has the machine's clock."""
    preload = os.environ.pop(_PRELOAD, None)
    try:
        yield
    finally:
        if preload is not None:
            os.environ[_PRELOAD] = preload


async def check_shift(dsn: str) -> None:
    """The server's clock is off against this process's as far as it was told to be."""
    connection = await asyncpg.connect(dsn)
    there: float = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
    await connection.close()
    assert abs(time.time() - there - int(os.environ.get(_SHIFT, "0"))) < 3_600


@functools.cache
def _library() -> Path:
    made = Path(tempfile.mkdtemp(prefix="zart-clock-")) / "clock.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(made), str(_SOURCE), "-ldl"], check=True)
    return made


def main(arguments: Sequence[str]) -> None:
    """Become a command, with the clock shifted."""
    os.execvpe(arguments[1], list(arguments[1:]), {**os.environ, **environment(int(arguments[0]))})


if __name__ == "__main__":
    main(sys.argv[1:])
