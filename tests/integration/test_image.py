"""The image of `deploy/Dockerfile`: what it is, and that a fleet runs in it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Collection, Generator
from functools import partial
from pathlib import Path
from typing import IO

import pytest

import zart
from tests.support import image
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.manifests import scaled_by, the
from tests.support.proxy import Proxy
from tests.support.shell import ROOT
from tests.support.web import get

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
DATA = '{"email": "ada@example.com", "card": "4242", "regions": ["eu"]}'


@pytest.fixture
def directory() -> Generator[Path, None, None]:
    """A new directory that other users can enter."""
    made = Path(tempfile.mkdtemp(prefix="zart-image-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_it_is_pinned_has_a_user_without_rights_and_signals_reach_the_runner() -> None:
    found = list(image.instructions(DOCKERFILE))
    arguments = dict(value.split("=") for name, value in found if name == "ARG")
    assert re.fullmatch(r"\d+\.\d+\.\d+-slim-[a-z]+", arguments["PYTHON"])
    assert [value for name, value in found if name == "FROM"] == [
        "python:${PYTHON} AS build", "python:${PYTHON} AS runner",
    ]  # fmt: skip
    last = found[[name for name, _ in found].index("USER") :]
    (user,) = (value for name, value in found if name == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # by number: Kubernetes cannot see that a name is not root's
    assert ("ENTRYPOINT", '["zart-runner"]') in last
    assert not {"RUN", "COPY", "ADD"} & {name for name, _ in last}


async def test_a_fleet_runs_in_it_as_process_1_of_a_user_without_rights_on_a_root_that_it_cannot_write(
    directory: Path, empty_database: Database
) -> None:
    if reason := image.refusal():
        pytest.skip(reason)
    built = await asyncio.to_thread(image.build, DOCKERFILE, directory)
    assert await output_of(built, "zart-runner", "--version") == f"zart {zart.__version__}\n"
    shutil.copytree(ROOT / "examples", built.root / "app" / "examples")
    log = directory / "runner.log"
    async with Proxy(empty_database) as proxy:
        built.environment["DATABASE_URL"] = proxy.database.dsn
        assert "0001_initial" in await output_of(built, "zart", "migrate")
        mounts = [mount["mountPath"] for mount in the("Deployment", "zart-runner").container["volumeMounts"]]
        with log.open("w") as file:
            options = ("--app=examples.onboarding", "--procs=2", "--http-port=0")
            runner = await begin(built, *built.entrypoint, *options, log=file, empty=mounts)
        (port,) = await eventually(lambda: re.findall(r"http://127\.0\.0\.1:(\d+)", log.read_text()), within=60)
        await eventually(partial(answers, int(port), "/startupz"), within=60)
        await eventually(partial(answers, int(port), "/readyz"))
        await output_of(built, "zart", "start", "onboarding", "--id", "signup-ada", "--data", DATA)
        assert "ada@example.com" in await output_of(built, "zart", "wait", "signup-ada", "--timeout", "60s")
        await eventually(partial(shows, int(port), scaled_by()))
        process = await process_1(runner)
        status = await asyncio.to_thread(Path(f"/proc/{process}/status").read_text)
        assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        os.kill(process, signal.SIGTERM)
        assert await asyncio.wait_for(runner.wait(), 40) == 0, log.read_text()
    assert "stopped" in log.read_text()
    assert "not exported" not in log.read_text()  # as without a place for the files of the application's metrics


async def answers(port: int, path: str) -> bool:
    return (await get(port, path)).status == 200


async def shows(port: int, names: set[str]) -> bool:
    page = await get(port, "/metrics")
    return all(page.values(name) for name in names)


async def begin(built: image.Stage, *command: str, log: IO[str] | int = PIPE, empty: Collection[str] = ()) -> Process:
    """Begin a command in the image."""
    line = built.container(*command, empty=empty)
    return await asyncio.create_subprocess_exec(*line, stdout=PIPE, stderr=log)


async def output_of(built: image.Stage, *command: str) -> str:
    process = await begin(built, *command)
    out, error = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, out.decode() + error.decode()
    return out.decode()


async def process_1(runner: Process) -> int:
    """The runner, as this machine numbers it."""
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
    return int(await eventually(lambda: children.read_text().strip()))
