"""What workers count of each task: what is committed, once, however the worker runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine, refuse_results_like
from tests.support.eventually import eventually
from tests.support.modes import Mode
from tests.support.steps import GATES, RAN, hang, note
from zart import Failure, zart_durable, zart_step
from zart.durable import DurableExecution
from zart.errors import StepFailed
from zart.meters import BYTES_READ, BYTES_WRITTEN, CLAIMS_LOST, TASK_COUNTERS, TASK_HISTOGRAMS, Counter
from zart.metrics import Place, merged, total
from zart.store import executions


class Declined(Exception): ...


@zart_step("threaded")
def threaded() -> str:
    return "done"


@zart_step("writing", retry="fixed(1, 5ms)")
async def writing() -> str:
    RAN["writing"] += 1
    await (await zart.trx()).execute("insert into notes values (1)")
    if RAN["writing"] == 1:
        raise ValueError
    return "written"


@zart_step("flaky", retry="fixed(2, 5ms)")
async def flaky() -> None:
    if zart.context().current_attempt < 2:
        raise ValueError


@zart_step("hopeless", retry="fixed(1, 5ms)")
async def hopeless() -> None:
    raise ValueError


@zart_step("declines", raises=Declined)
async def declines() -> None:
    raise Declined


@zart_step("late", timeout="20ms")
async def late() -> None:
    await asyncio.Event().wait()


@zart_durable("all-kinds")
async def all_kinds() -> None:
    await asyncio.gather(note("a"), threaded(), writing(), flaky())
    for call in (hopeless(), declines(), late()):
        await zart.step_or(call, None)


@zart_durable("retried", retry="fixed(1, 5ms)")
async def retried() -> None:
    await note("before")
    if zart.context().current_attempt == 0:
        raise ValueError


async def _repair(failure: Failure) -> str:
    return await note("repaired")


@zart_durable("handled", on_failure=_repair)
async def handled() -> str:
    await hopeless()
    return "never"


@zart_durable("past-deadline", timeout="200ms")
async def past_deadline() -> None:
    await hang("for ever")


@zart_step("double-{n}")
async def double(n: int) -> int:
    return 2 * n


@zart_step("writes-elsewhere")
async def writes_elsewhere() -> None:
    await (await zart.trx()).execute("insert into notes values (2)")


@zart_durable("child")
async def child() -> None:
    await note("child")


@zart_durable("parent")
async def parent() -> None:
    handles = [zart.schedule(double(n)) for n in range(3)]
    await zart.wait([*handles, zart.schedule(flaky()), zart.schedule(hopeless()), zart.schedule(writes_elsewhere())])
    await child()


@zart_durable("sleeper")
async def sleeper() -> None:
    await zart.sleep("nap", "1100ms")


def counted(engine: Engine) -> dict[str, dict[str, int]]:
    """What each task has counted, zeros left out; names without zart_, _total and what goes without saying."""
    found: dict[str, dict[str, int]] = {}
    for loop in engine.loops:
        for name in engine.registry:
            of_task = found.setdefault(name, {})
            for counter in TASK_COUNTERS:
                count = loop.place.words[loop.place.tally_of(name) + counter.offset]
                if count:
                    of_task[_short(counter)] = of_task.get(_short(counter), 0) + count
    return {name: of_task for name, of_task in found.items() if of_task}


def _short(counter: Counter) -> str:
    name = counter.name.removeprefix("zart_").removesuffix("_total").removeprefix("executions_")
    return counter.label[1] if counter.label and name == "ended" else f"{name}{counter.label or ''}"


def ends(
    completed: int = 0, failed: int = 0, steps: int = 0, steps_failed: int = 0, retries: int = 0
) -> dict[str, int]:
    found = {
        "completed": completed,
        "failed": failed,
        "steps_ended('outcome', 'completed')": steps,
        "steps_ended('outcome', 'failed')": steps_failed,
        "step_retries": retries,
    }
    return {name: count for name, count in found.items() if count}


def _balance(places: Sequence[Place]) -> int:
    """Claims taken less those that were given up in any way."""
    by_name = {_short(counter): total(places, counter.offset) for counter in TASK_COUNTERS}
    given_up = ("completed", "failed", "retried", "parked", "put_off")
    return by_name["claimed"] - sum(by_name[name] for name in given_up) - total(places, CLAIMS_LOST)


async def test_everything_is_counted_once_for_its_task(
    database: Database, connection: asyncpg.Connection, mode: Mode
) -> None:
    await connection.execute("create table notes(n int)")
    bodies: list[DurableExecution[Any, Any]] = [all_kinds, retried, handled, past_deadline, parent, sleeper]
    scheduled = (child, double, flaky, hopeless, writes_elsewhere)
    async with Engine(database, [*bodies, *scheduled]) as engine:
        for body in bodies:
            await engine.start(f"{body.spec.task_name}-1", body)
        await engine.all_ended()
        places = [loop.place for loop in engine.loops]
        await eventually(lambda: _balance(places) == 0)
        found = counted(engine)
        ended = {name: {key: count for key, count in of.items() if key in _ENDINGS} for name, of in found.items()}
        assert ended == {
            "all-kinds": ends(completed=1, steps=4, steps_failed=3, retries=4),
            "retried": ends(completed=1, steps=1),
            "handled": ends(completed=1, steps=1, steps_failed=1, retries=1),
            "past-deadline": ends(failed=1),
            "parent": ends(completed=1),
            "child": ends(completed=1, steps=1),
            "double-{n}": ends(completed=3, steps=3),
            "flaky": ends(completed=1, steps=1, retries=2),
            "hopeless": ends(failed=1, steps_failed=1, retries=1),
            "writes-elsewhere": ends(completed=1, steps=1),
            "sleeper": ends(completed=1),
        }
        assert found["retried"]["retried"] == 1
        tries = sum(count for of in ended.values() for key, count in of.items() if "step" in key)
        bodies_ended = sum(count for of in ended.values() for key, count in of.items() if "step" not in key)
        assert [sum(merged(places, histogram)) for histogram in TASK_HISTOGRAMS] == [bodies_ended, tries]
        assert total(places, BYTES_READ) > 0
        assert total(places, BYTES_WRITTEN) > 0
        if mode is Mode.AS_IS:
            assert (found["sleeper"]["claimed"], found["sleeper"]["resumed"], found["sleeper"]["parked"]) == (2, 1, 1)
            assert (found["handled"]["claimed"], found["handled"]["put_off"]) == (2, 1)
            assert (found["retried"]["claimed"], found["retried"]["steps_replayed"]) == (2, 1)


_ENDINGS = ends(1, 1, 1, 1, 1).keys()


@zart_durable("outlived")
async def outlived(number: int) -> None:
    await hang(f"step-{number}")
    RAN["past the step"] += 1
    await GATES["end"].wait()


@pytest.mark.parametrize("gate", ["step", "end"])
async def test_what_a_zombie_sends_is_no_success(database: Database, connection: asyncpg.Connection, gate: str) -> None:
    """Its claims are taken over while it runs; then its steps end, or its bodies."""
    count = 10
    async with Engine(database, [outlived]) as engine:
        for number in range(count):
            await engine.start(f"o-{number}", outlived, number)
            if gate == "end":
                GATES[f"step-{number}"].set()
        begun = "past the step" if gate == "end" else "step-9"
        await eventually(lambda: RAN[begun] >= (count if gate == "end" else 1))
        for loop in engine.loops:
            await engine.take_over(loop)
        for number in range(count):
            GATES[f"step-{number}"].set()
        GATES["end"].set()
        await engine.all_ended()
        places = [loop.place for loop in engine.loops]
        await eventually(lambda: _balance(places) == 0)
        steps = await connection.fetchval("select count(*) from zart.zart_tasks where kind = 1")
        assert steps == count
        [found] = counted(engine).values()
        assert {key: n for key, n in found.items() if key in _ENDINGS} == ends(completed=count, steps=steps)
        assert total(places, CLAIMS_LOST) > 0
        kept = await connection.fetchval(
            "select (select sum(octet_length(result::text)) from zart.zart_tasks)"
            " + (select sum(octet_length(output::text)) from zart.zart_executions)"
        )
        assert total(places, BYTES_WRITTEN) == kept


async def _steps_kept(connection: asyncpg.Connection, count: int) -> bool:
    kept: int = await connection.fetchval("select count(*) from zart.zart_tasks where kind = 1")
    return kept == count


async def test_the_end_of_a_cancelled_execution_is_no_success(
    database: Database, connection: asyncpg.Connection, mode: Mode
) -> None:
    """They come to their end before their worker hears that they were cancelled."""
    async with Engine(database, [outlived]) as engine:
        for number in range(10):
            GATES[f"step-{number}"].set()
            await engine.start(f"o-{number}", outlived, number)
        await eventually(lambda: _steps_kept(connection, 10))
        await eventually(lambda: RAN["past the step"] >= 10)
        for number in range(10):
            await executions.cancel(connection, engine.schema, engine.bucket(f"o-{number}"), f"o-{number}")
        GATES["end"].set()
        places = [loop.place for loop in engine.loops]
        await eventually(lambda: _balance(places) == 0)
        [found] = counted(engine).values()
        assert {key: n for key, n in found.items() if key in _ENDINGS} == ends(steps=10)
        if mode is Mode.AS_IS:
            assert total(places, CLAIMS_LOST) == 10


@zart_durable("refused")
async def refused() -> str:
    try:
        return await note("poison")
    except StepFailed:
        return "caught"


async def test_a_result_that_the_database_refuses_is_no_success(
    database: Database, connection: asyncpg.Connection
) -> None:
    await refuse_results_like(connection, "poison")
    async with Engine(database, [refused]) as engine:
        await engine.start("r", refused)
        await engine.all_ended()
        await eventually(lambda: _balance([loop.place for loop in engine.loops]) == 0)
        [found] = counted(engine).values()
        assert {key: n for key, n in found.items() if key in _ENDINGS} == ends(failed=1)


async def test_a_tick_without_an_answer_is_counted_once(database: Database, connection: asyncpg.Connection) -> None:
    """Connections are cut all the time: what was committed is found out, and counted then."""
    count = 40
    async with Engine(database, [retried, child]) as engine:
        for number in range(count):
            await engine.start(f"c-{number}", child)
            await engine.start(f"r-{number}", retried)
            if number % 5 == 0:
                await engine.cut_connections()
        await engine.all_ended()
        await eventually(lambda: _balance([loop.place for loop in engine.loops]) == 0)
        found = counted(engine)
        for task in ("child", "retried"):
            assert {key: n for key, n in found[task].items() if key in _ENDINGS} == ends(completed=count, steps=count)
        assert found["retried"]["retried"] == count
