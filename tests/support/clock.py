"""Wall clocks that are wrong, by libfaketime: only the time of day is shifted, monotonic clocks go on as they are.

The whole suite runs so under `FAKETIME_DONT_FAKE_MONOTONIC=1 faketime -m -f +1d pytest ...`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import asyncpg

MISSING = "" if shutil.which("faketime") else "faketime is not installed: apt-get install faketime"
"""Why no clock can be shifted here; empty where it can."""

_LEAST_SHIFT = 80_000.0


def environment(offset: str) -> dict[str, str]:
    """Variables for a program whose clock is to be off by so much, as "+1d"."""
    asked = ["faketime", "-m", "-f", offset, "printenv", "LD_PRELOAD"]
    library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return {"LD_PRELOAD": library, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def is_shifted() -> bool:
    """Whether this process was told to run with a shifted clock."""
    return "faketime" in os.environ.get("LD_PRELOAD", "")


@contextlib.contextmanager
def true_clock() -> Iterator[None]:
    """What is started within has the machine's clock."""
    preload = os.environ.pop("LD_PRELOAD", None)
    try:
        yield
    finally:
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload


async def check_shift(dsn: str) -> None:
    """The server has another time than this process, if that was told to have one."""
    connection = await asyncpg.connect(dsn)
    there: float = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
    await connection.close()
    assert (abs(there - time.time()) > _LEAST_SHIFT) == is_shifted()
