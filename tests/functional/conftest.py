"""Every test here runs in each mode of tests/support/modes.py, and finds nothing noted by those before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import steps
from tests.support.engine import Engine
from tests.support.modes import Mode


@pytest.fixture(params=list(Mode), autouse=True)
def mode(request: pytest.FixtureRequest) -> Iterator[Mode]:
    """How the test's engines run."""
    Engine.mode = request.param
    yield request.param
    Engine.mode = Mode.AS_IS


@pytest.fixture(autouse=True)
def _nothing_has_run() -> Iterator[None]:
    steps.forget()
    yield
    steps.let_go()
