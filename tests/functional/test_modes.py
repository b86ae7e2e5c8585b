"""The modes that these tests run in do what they say: parents and children are put down, and taken up elsewhere."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.modes import Mode
from zart import zart_durable, zart_step
from zart.engine.attempt import StepRun
from zart.engine.loop import WorkerLoop
from zart.engine.scope import current_scope
from zart.engine.turn import Turn

BEGUN: list[tuple[str, WorkerLoop]] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    BEGUN.clear()


def note(what: str) -> None:
    """Keep what begins here, and in which worker."""
    scope = current_scope.get()
    turn = scope.turn if isinstance(scope, StepRun) else scope
    assert isinstance(turn, Turn)
    assert isinstance(turn.host, WorkerLoop)
    BEGUN.append((what, turn.host))


def workers_of(what: str) -> list[WorkerLoop]:
    """The workers in which it began, in order."""
    return [worker for begun, worker in BEGUN if begun == what]


@zart_step("double-{number}")
async def double(number: int) -> int:
    note("double")
    return 2 * number


@zart_step("between")
async def between() -> None:
    note("between")


@zart_durable("child")
async def child(number: int) -> int:
    note("child")
    return await double(number) + await double(number + 1)


@zart_durable("parent")
async def parent() -> list[int]:
    note("parent")
    handles = [zart.schedule(double(number)) for number in range(6)]
    await between()
    total = sum([await handle for handle in handles])
    return [total, await child(7)]


async def test_parents_and_children_are_put_down_and_alternate_as_their_mode_says(
    database: Database, mode: Mode
) -> None:
    async with Engine(database, [parent, child, double]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == [30, 30]
    assert len(workers_of("double")) == 8
    if mode is not Mode.AS_IS:
        begun = [what for what, _ in BEGUN]
        assert begun[: begun.index("between")].count("parent") == 2  # put down when its children were made
        assert len(workers_of("parent")) >= 4
        assert len(workers_of("child")) == 2
    if mode is Mode.ALTERNATING:
        assert set(Counter(workers_of("double")).values()) == {4}  # scheduled and in the child, as many here as there
        for what in ("parent", "child"):
            assert all(before is not after for before, after in pairwise(workers_of(what)))
