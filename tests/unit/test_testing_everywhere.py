"""crash_everywhere: finds workflows that come to another end when their worker dies, and passes those that do not."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID, uuid4

import pytest

import zart
from zart import zart_durable, zart_step
from zart.errors import ExecutionFailed
from zart.testing import CrashMattered, Run, crash_everywhere

DONE: list[str] = []


def reset(run: Run[Any]) -> None:
    DONE.clear()
    run.offer_event("approved", "eve", after="40d")


@zart_step("reserve", retry="fixed(2, 1m)")
async def reserve() -> str:
    DONE.append("reserve")
    if zart.context().current_attempt == 0:
        raise ConnectionError
    return "reserved"


@zart_step("ship")
def ship() -> str:
    DONE.append("ship")
    return "shipped"


@zart_durable("fulfil", max_retries=1)
async def fulfil() -> list[str]:
    reserved = await reserve()
    await zart.sleep("settle", "30d")
    try:
        by = await zart.wait_for_event("signed", str, timeout="1d")
    except zart.EventTimeout:
        by = await zart.wait_for_event("approved", str)
    return [reserved, by, await ship()]


async def test_a_workflow_without_faults_survives_everywhere() -> None:
    runs: list[Run[Any]] = []

    def prepare(run: Run[Any]) -> None:
        reset(run)
        runs.append(run)

    assert await crash_everywhere(fulfil, prepare=prepare) == ["reserved", "eve", "shipped"]
    assert sum(run.crashes for run in runs) == len(runs) - 2
    killed = {str(run._plan.writes[number // 2]) for number, run in enumerate(runs[2:])}
    assert killed == {
        "failed try 1 of step 'reserve'",
        "the result of step 'reserve'",
        "sleep 'settle'",
        "the wait for event 'signed'",
        "the timeout of event 'signed'",
        "the wait for event 'approved'",
        "the result of step 'ship'",
        "parking",
        "the end",
    }


async def test_a_step_that_is_not_idempotent_is_found_and_its_crash_told() -> None:
    @zart_step("count")
    async def count() -> int:
        DONE.append("counted")
        return len(DONE)

    @zart_durable("counts")
    async def counts() -> int:
        return await count()

    with pytest.raises(CrashMattered) as found:
        await crash_everywhere(counts, prepare=reset)
    told = str(found.value)
    assert "'counts' does not survive 1 of 4 crashes" in told
    assert "killed before the result of step 'count' was stored (write 1): it ended with" in told
    assert "the result 2" in told
    assert "without a crash with\n        the result 1" in told


async def test_a_body_that_depends_on_what_is_not_kept_is_found() -> None:
    @zart_durable("forgets")
    async def forgets() -> bool:
        first = "ship" not in DONE
        await ship()
        return first

    with pytest.raises(CrashMattered, match="killed after the result of step 'ship' was stored"):
        await crash_everywhere(forgets, prepare=reset)


async def test_a_workflow_that_fails_alike_everywhere_raises_its_failure() -> None:
    @zart_durable("fails")
    async def fails() -> None:
        await ship()
        raise KeyError("always")

    with pytest.raises(ExecutionFailed, match="always"):
        await crash_everywhere(fails, prepare=reset)


async def test_results_with_random_parts_are_compared_by_a_key() -> None:
    @zart_durable("random")
    async def gives_random() -> tuple[UUID, str]:
        return await zart.capture("id", uuid4), await ship()

    with pytest.raises(CrashMattered, match="differs from run to run, without any crash"):
        await crash_everywhere(gives_random)
    assert (await crash_everywhere(gives_random, key=lambda result: result[1]))[1] == "shipped"


async def test_a_body_whose_order_varies_is_no_difference() -> None:
    @zart_durable("varies")
    async def varies() -> str:
        if random.random() < 0.5:
            await zart.capture("extra", lambda: 1)
        return await ship()

    for _ in range(10):
        assert await crash_everywhere(varies) == "shipped"


async def test_a_kept_step_that_begins_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zart.testing.turns.Pass._history", lambda *_: None)
    with pytest.raises(CrashMattered, match="step 'ship' began again, though its result was kept"):
        await crash_everywhere(ships)


@zart_durable("ships")
async def ships() -> str:
    return await ship()
