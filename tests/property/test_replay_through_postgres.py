"""Live equals replay through the whole engine: what a body gets when a step runs, and what it gets from the journal."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.test_codec_round_trip import TYPES, json_values
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import zart_durable, zart_step
from zart.model import ExecutionStatus


def step_of(number: int, annotation: Any, value: Any, ran: list[int]) -> Any:
    async def give() -> Any:
        ran.append(number)
        return value

    give.__annotations__["return"] = annotation
    return zart_step(f"value-{number}")(give)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_every_supported_type_is_the_same_live_and_replayed(database: Database, data: st.DataObject) -> None:
    values = [(annotation, data.draw(strategy)) for annotation, strategy in TYPES]
    values.append((Any, data.draw(json_values)))
    asyncio.run(compare(database, values, f"run-{abs(hash(repr(values)))}"))


async def compare(database: Database, values: list[tuple[Any, Any]], execution_id: str) -> None:
    ran: list[int] = []
    passes: list[list[Any]] = []
    gate = asyncio.Event()
    steps = [step_of(number, annotation, value, ran) for number, (annotation, value) in enumerate(values)]

    @zart_step("hold")
    async def hold() -> None:
        await gate.wait()

    @zart_durable("replays")
    async def replays() -> None:
        passes.append([await step() for step in steps])
        await hold()

    async with Engine(database, [replays]) as engine:
        await engine.start(execution_id, replays)
        await eventually(lambda: len(passes) == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: len(passes) == 2)
        gate.set()
        assert (await engine.ended(execution_id)).status is ExecutionStatus.COMPLETED
    live, replayed = passes
    assert [type(value) for value in live] == [type(value) for value in replayed]
    assert repr(live) == repr(replayed)
    assert live == replayed
    assert ran == list(range(len(steps)))
