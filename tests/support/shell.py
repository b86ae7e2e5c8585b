"""The commands, as a user types them into a shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

_ENTRIES = {"zart": "zart.cli.main", "zart-runner": "zart.cli.runner"}


async def begin(line: str, *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> Process:
    """Begin `zart ...` or `zart-runner ...`, in a process group of its own.

    Args:
        environment: variables set besides those of this process.
    """
    command, *arguments = shlex.split(line)
    code = f"from {_ENTRIES[command]} import main; main()"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments, cwd=cwd, stdout=PIPE, stderr=PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )  # fmt: skip


async def output_of(line: str, *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, code: int = 0) -> str:
    """What a command prints on stdout and stderr; it must end with this exit code."""
    process = await begin(line, cwd=cwd, environment=environment)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == code, f"{line}: {process.returncode}\n{out.decode()}{err.decode()}"
    return out.decode() + err.decode()


@asynccontextmanager
async def running(
    line: str, *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[Process, None]:
    """A command that runs until the block ends; then it is killed, if it is still there."""
    process = await begin(line, cwd=cwd, environment=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            await kill(process)


async def kill(process: Process) -> str:
    """Kill a command and all that it has forked, as a power cut would; what it printed on stdout and stderr."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    out, err = await process.communicate()
    return out.decode() + err.decode()
