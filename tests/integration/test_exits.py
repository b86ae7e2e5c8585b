"""SystemExit and KeyboardInterrupt of user code: asyncio lets a task's end its event loop, and with it the process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.database import Database
from tests.support.exits import EXITS, STEPS


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_process_lives_on_when_user_code_exits_anywhere_in_it(database: Database, loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.exits", database.dsn, loop],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    ended = json.loads(done.stdout)
    assert ended.pop("ordinary") == 1
    wanted = {f"{name}: {how}": "the step failed" for name in STEPS for how in EXITS}
    for how in EXITS:
        wanted |= {f"of {what}: {how}": "body_failed" for what in ("the body", "a task of the body", "retry_on")}
        wanted |= {f"of a task nobody awaits: {how}": "went on", f"of the input: {how}": "input_refused"}
    assert ended == wanted
