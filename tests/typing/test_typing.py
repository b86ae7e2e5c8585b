"""The checkers themselves, run on what must pass and on what must fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = ["must_pass.py", "must_fail.py"]
MARK = re.compile(r"# E(?: (mypy|pyright))?$")

Place = tuple[str, int]
Errors = dict[Place, str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The two files in a folder of their own, where no other configuration applies."""
    for name in FILES:
        shutil.copy(HERE / name, tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    # 0: clean, 1: errors found; anything else is the checker's own failure.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def found_by_mypy(folder: Path) -> Errors:
    pytest.importorskip("mypy")
    output = run(
        folder, "mypy", "--strict", "--config-file=", "--python-version=3.11", "--follow-imports=silent",
        "--enable-error-code=unused-awaitable", "--no-pretty", *FILES,
    )  # fmt: skip
    found = re.findall(r"^(\w+\.py):(\d+): error: (.*)", output, re.MULTILINE)
    return {(name, int(line)): message for name, line, message in found}


def found_by_pyright(folder: Path) -> Errors:
    pytest.importorskip("pyright")
    settings = {
        "include": FILES,
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        # That a name is not used says nothing about its type.
        "reportUnusedVariable": False,
        "reportUnusedExpression": False,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    output = run(folder, "pyright", "--pythonpath", sys.executable, "--outputjson")
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"]
        for one in json.loads(output)["generalDiagnostics"]
        if one["severity"] == "error"
    }


def marked(checker: str) -> set[Place]:
    lines = enumerate((HERE / "must_fail.py").read_text().splitlines(), 1)
    found = ((number, MARK.search(line)) for number, line in lines)
    return {("must_fail.py", number) for number, mark in found if mark and mark[1] in (None, checker)}


@pytest.mark.parametrize(("checker", "find"), [("mypy", found_by_mypy), ("pyright", found_by_pyright)])
def test_marked_lines_are_errors_and_nothing_else_is(
    checker: str, find: Callable[[Path], Errors], folder: Path
) -> None:
    errors, expected = find(folder), marked(checker)
    assert len(expected) > 30
    assert {place: message for place, message in errors.items() if place not in expected} == {}
    assert expected - set(errors) == set()
