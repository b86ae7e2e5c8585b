"""Values that cannot be kept or read back: every error names the execution or the checkpoint, and the remedy."""

from __future__ import annotations

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import zart_durable, zart_step
from zart.durable import DurableExecution
from zart.model import ExecutionStatus

TOO_LONG = "x" * 5_000_000


@zart_durable("returns-big")
async def returns_big() -> str:
    return TOO_LONG


@zart_step("keeps-big")
async def keeps_big() -> str:
    return TOO_LONG


@zart_durable("step-returns-big")
async def step_returns_big() -> str:
    return await keeps_big()


@zart_durable("captures-big")
async def captures_big() -> str:
    return await zart.capture("all of it", lambda: TOO_LONG)


@zart_durable("wants-order")
async def wants_order(data: dict[str, int]) -> int:
    return data["amount"]


@pytest.mark.parametrize(
    ("durable", "named"),
    [
        (returns_big, "result of execution 'a' at $: it takes 5,000,002 bytes"),
        (step_returns_big, "result of step 'keeps-big' at $: it takes 5,000,002 bytes"),
        (captures_big, "result of step 'all of it' at $: it takes 5,000,002 bytes"),
    ],
)
async def test_a_value_over_the_limit_is_named_with_its_size(
    database: Database, durable: DurableExecution[None, str], named: str
) -> None:
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        record = await engine.ended("a")
    assert record.status == ExecutionStatus.FAILED
    assert named in record.error["message"]
    assert "the limit is 4,194,304" in record.error["message"]


async def test_an_input_that_does_not_fit_is_named_with_the_remedy(database: Database) -> None:
    async with Engine(database, [wants_order]) as engine:
        await engine.start("a", wants_order, {"amount": "much"})
        error = (await engine.ended("a")).error
    assert error["message"].startswith("input of execution 'a' at $")
    assert "under another id" in error["message"]


async def test_a_stored_result_that_no_longer_fits_names_its_step_and_the_remedy(database: Database) -> None:
    """The annotation changed between two deployments."""

    @zart_step("count")
    async def count_before() -> str:
        return "three"

    @zart_step("stop-here", retry="fixed(1, 1h)")
    async def stop_here() -> None:
        raise ValueError("not yet")

    @zart_durable("deployed")
    async def before() -> int:
        await count_before()
        await stop_here()
        return 0

    @zart_step("count")
    async def count_after() -> int:
        return 3

    @zart_durable("deployed")
    async def after() -> int:
        return await count_after()

    async with Engine(database, [before]) as engine:
        await engine.start("a", before)
        await eventually(lambda: engine.history("a"))
    async with Engine(database, [after]) as engine:
        await engine.connection.execute("update zart.zart_queue set run_at = now()")
        error = (await engine.ended("a")).error
    assert error["message"].startswith("result of step 'count' at $: it does not fit int")
    assert "give the step another name" in error["message"]
