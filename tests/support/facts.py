"""What tests of the engine wait for and look at."""

from __future__ import annotations

from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart.model import ExecutionStatus, StepRecord


async def is_waiting(engine: Engine, execution_id: str) -> bool:
    """Whether the execution is parked."""
    return (await engine.record(execution_id)).status == ExecutionStatus.WAITING


async def parked(engine: Engine, execution_id: str, within: float = 20) -> None:
    """Returns once the execution is parked, and no worker holds anything of it in memory."""
    await eventually(lambda: is_waiting(engine, execution_id), within=within)
    await eventually(lambda: not any(loop.turns for loop in engine.loops), within=within)


async def operations(engine: Engine, execution_id: str) -> list[str]:
    """Names of the journal's operations, sorted."""
    return sorted(step.name for step in await engine.history(execution_id))


async def operation(engine: Engine, execution_id: str, name: str, status: str = "") -> StepRecord | None:
    """The operation of this name, if the journal has it, in this status if one is given."""
    for step in await engine.history(execution_id):
        if step.name == name and status in ("", step.status):
            return step
    return None


async def has(engine: Engine, execution_id: str, name: str, status: str = "") -> bool:
    """Whether the journal has an operation of this name, in this status if one is given."""
    return await operation(engine, execution_id, name, status) is not None


async def left_in_queue(engine: Engine) -> int:
    """How many executions have not ended."""
    count: int = await engine.connection.fetchval("select count(*) from zart.zart_queue")
    return count


async def crash(engine: Engine) -> None:
    """All workers die, and are replaced."""
    for loop in engine.loops:
        await engine.take_over(loop)
