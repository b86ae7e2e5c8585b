"""How turns end: every one of them does, with the right ending, and nothing goes on behind it."""

from __future__ import annotations

import asyncio
import collections
import threading
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import PostgresScheduler, TaskRegistry, Worker, WorkerConfig, zart_durable, zart_step
from zart.duration import RetryConfig
from zart.engine.turn import Turn
from zart.errors import NotInExecution, StepFailed
from zart.model import ExecutionStatus
from zart.store import executions

RAN: collections.Counter[str] = collections.Counter()
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)
TASKS: list[asyncio.Task[Any]] = []

CONFIG = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=4)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    GATES.clear()
    TASKS.clear()


@zart_step("cleans-up")
async def cleans_up() -> None:
    """Is in its clean-up from its first cancellation to the second."""
    RAN["begun"] += 1
    GATES["begun"].set()
    try:
        await asyncio.Event().wait()
    finally:
        RAN["cleaning"] += 1
        await asyncio.Event().wait()


@zart_step("retrying", retry="fixed(1, 1h)")
async def retrying() -> int:
    RAN["retrying"] += 1
    raise ValueError("not now")


@zart_step("gated")
async def gated() -> int:
    RAN["gated"] += 1
    await GATES["gated"].wait()
    return 1


@zart_step("echo-{n}")
async def echo(n: int) -> int:
    RAN[f"echo-{n}"] += 1
    return n


async def _holds_nothing(engine: Engine) -> None:
    """Returns when the worker holds no turn, and nobody has a claim."""
    await eventually(lambda: not engine.loops[0].turns, within=5)
    assert await engine.connection.fetchval("select count(*) from zart.zart_queue where worker is not null") == 0


# -- every turn ends


async def test_a_deadline_that_passes_while_started_steps_clean_up_ends_the_execution(database: Database) -> None:
    @zart_durable("leaves-behind", timeout="1s")
    async def leaves_behind() -> None:
        TASKS.append(asyncio.create_task(cleans_up()))
        await GATES["begun"].wait()
        raise ValueError("the body fails first")

    async with Engine(database, [leaves_behind], config=CONFIG) as engine:
        await engine.start("d", leaves_behind)
        record = await engine.ended("d", within=5)
        assert RAN["cleaning"] == 1
        assert (record.status, record.error["kind"]) == (ExecutionStatus.FAILED, "deadline_exceeded")
        await _holds_nothing(engine)


async def test_a_drain_that_runs_out_of_time_while_started_steps_clean_up_hands_back(database: Database) -> None:
    @zart_durable("leaves-behind")
    async def leaves_behind() -> None:
        TASKS.append(asyncio.create_task(cleans_up()))
        await GATES["begun"].wait()
        raise ValueError("the body fails first")

    config = WorkerConfig(lease_timeout="1h", shutdown_timeout="3s")  # the last fifth of it is for the last ticks
    async with Engine(database, [leaves_behind], config=config) as engine:
        await engine.start("d", leaves_behind)
        await eventually(lambda: RAN["cleaning"])
        engine.loops[0].stop()
        await asyncio.wait_for(asyncio.shield(engine.tasks[0]), 10)
        assert (await engine.record("d")).status == ExecutionStatus.PENDING
        await _holds_nothing(engine)


async def test_a_retry_on_that_raises_fails_the_execution_with_its_error(database: Database) -> None:
    def picky(error: BaseException) -> bool:
        raise LookupError(f"no rule for {error}")

    @zart_durable("picky", retry=RetryConfig.fixed(2, "10ms", retry_on=picky))
    async def fails() -> None:
        raise ValueError("x")

    async with Engine(database, [fails], config=CONFIG) as engine:
        await engine.start("p", fails)
        record = await engine.ended("p", within=5)
        assert (record.status, record.error["type"]) == (ExecutionStatus.FAILED, "LookupError")
        await _holds_nothing(engine)


async def test_an_error_derived_from_step_failed_without_its_facts_fails_the_execution(database: Database) -> None:
    class Bare(StepFailed):
        def __init__(self, what: str) -> None:
            self.what = what

    @zart_durable("bare")
    async def fails() -> None:
        raise Bare("x")

    async with Engine(database, [fails], config=CONFIG) as engine:
        await engine.start("b", fails)
        record = await engine.ended("b", within=5)
        assert (record.status, record.error["kind"]) == (ExecutionStatus.FAILED, "step_failed")
        await _holds_nothing(engine)


async def test_a_body_that_waits_out_a_retry_delay_in_memory_is_handed_back_at_once(database: Database) -> None:
    @zart_durable("waits")
    async def waits() -> int:
        return await retrying()

    config = WorkerConfig(lease_timeout="1h", park_grace="1h", shutdown_timeout="1h")
    async with Engine(database, [waits], config=config) as engine:
        await engine.start("w", waits)
        await eventually(lambda: [turn for turn in engine.loops[0].turns.values() if turn.waits])
        engine.loops[0].stop()
        await asyncio.wait_for(asyncio.shield(engine.tasks[0]), 4)
        assert not (await engine.record("w")).status.is_terminal
        await _holds_nothing(engine)


# -- the ending is the right one


async def test_a_failure_that_the_body_handled_in_a_task_does_not_fail_the_execution(database: Database) -> None:
    @zart_step("fails")
    async def fails() -> int:
        raise ValueError("no")

    @zart_durable("handles")
    async def handles() -> str:
        task = asyncio.create_task(fails())
        try:
            await task
        except StepFailed:
            return "handled"
        return "not raised"

    async with Engine(database, [handles], config=CONFIG) as engine:
        await engine.start("h", handles)
        record = await engine.ended("h")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, "handled")


async def test_a_step_that_the_body_cancelled_does_not_fail_the_execution(database: Database) -> None:
    @zart_durable("races")
    async def races() -> int:
        loser, winner = asyncio.create_task(gated()), asyncio.create_task(echo(7))
        done, pending = await asyncio.wait([loser, winner], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return done.pop().result()

    async with Engine(database, [races], config=CONFIG) as engine:
        await engine.start("r", races)
        record = await engine.ended("r")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, 7)
        assert [step.name for step in await engine.history("r")] == ["echo-7"]


async def test_a_body_that_swallows_its_suspension_is_handed_back_and_not_completed(database: Database) -> None:
    @zart_durable("swallows")
    async def swallows() -> str:
        try:
            await gated()
            await echo(1)
        except BaseException:
            return "swallowed"
        return "whole"

    async with Engine(database, [swallows], config=CONFIG) as engine:
        await engine.start("s", swallows)
        await eventually(lambda: RAN["gated"])
        engine.loops[0].stop()
        GATES["gated"].set()
        await engine.tasks[0]
        record = await engine.record("s")
        assert (record.status, record.output) == (ExecutionStatus.PENDING, None)
        assert [step.name for step in await engine.history("s")] == ["gated"]


async def test_a_capture_that_was_not_awaited_is_kept_before_the_end(database: Database) -> None:
    @zart_durable("asks-the-time")
    async def asks_the_time() -> int:
        TASKS.append(asyncio.create_task(zart.now("when")))
        await asyncio.sleep(0)
        return 1

    async with Engine(database, [asks_the_time], config=CONFIG) as engine:
        await engine.start("n", asks_the_time)
        assert (await engine.ended("n")).output == 1
        assert [step.name for step in await engine.history("n")] == ["when"]
        assert TASKS[0].done()


# -- steps over execution retries


async def test_a_timeout_for_the_whole_step_begins_anew_with_an_execution_retry(database: Database) -> None:
    @zart_step("unsure", timeout="500ms", retry="fixed(2, 1ms)")
    async def unsure() -> int:
        RAN["unsure"] += 1
        if RAN["unsure"] <= 3:
            raise ValueError("unsure")
        return 1

    @zart_durable("again", retry="fixed(1, 700ms)")
    async def again() -> int:
        return await unsure()

    async with Engine(database, [again], config=CONFIG) as engine:
        await engine.start("r", again)
        record = await engine.ended("r")
        assert (record.status, record.output, RAN["unsure"]) == (ExecutionStatus.COMPLETED, 1, 4)


@zart_step("fifth-time", retry="fixed(2, 1ms)")
async def fifth_time() -> int:
    RAN["fifth-time"] += 1
    if RAN["fifth-time"] < 5:
        raise ValueError(f"try {RAN['fifth-time']}")
    return RAN["fifth-time"]


@zart_durable("two-passes", retry="fixed(1, 10ms)")
async def two_passes() -> int:
    return await fifth_time()


async def test_a_step_has_all_its_retries_again_after_an_execution_retry(database: Database) -> None:
    async with Engine(database, [two_passes], config=CONFIG) as engine:
        await engine.start("r", two_passes)
        record = await engine.ended("r")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, 5)


async def test_failed_tries_before_an_execution_retry_stay_in_the_history(database: Database) -> None:
    async with Engine(database, [two_passes], config=CONFIG) as engine:
        await engine.start("r", two_passes)
        await engine.ended("r")
        [step] = await engine.history("r")
        assert [each.error["message"] for each in step.failed_attempts] == [f"try {n}" for n in range(1, 5)]


# -- deadlines and retry delays


@zart_durable("limited", timeout="10s")
async def limited() -> int:
    RAN["limited"] += 1
    return RAN["limited"]


async def _started_by_name_an_hour_ago(database: Database, execution_id: str) -> None:
    """Start `limited` as someone who does not know its timeout, and let it wait."""
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start(execution_id, "limited", None)
    connection = await database.connect()
    await connection.execute("update zart.zart_executions set created_at = created_at - interval '1 h'")
    await connection.close()


async def test_an_execution_started_by_name_has_its_full_timeout_however_long_it_waited(database: Database) -> None:
    await _started_by_name_an_hour_ago(database, "late")
    async with Engine(database, [limited], config=CONFIG) as engine:
        record = await engine.ended("late")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, 1)


async def test_a_restart_of_an_execution_started_by_name_has_its_full_timeout_again(database: Database) -> None:
    async with Engine(database, [limited], config=CONFIG) as engine:
        await _started_by_name_an_hour_ago(database, "again")
        await engine.ended("again")
        await executions.restart(engine.connection, engine.schema, engine.bucket("again"), "again")
        record = await engine.ended("again")
        assert (record.status, record.error) == (ExecutionStatus.COMPLETED, None)


async def test_a_retry_delay_does_not_outlast_the_deadline(database: Database) -> None:
    @zart_durable("tries-later", timeout="500ms", retry="fixed(1, 1h)")
    async def tries_later() -> int:
        RAN["tries-later"] += 1
        raise ValueError("x")

    async with Engine(database, [tries_later], config=CONFIG) as engine:
        await engine.start("t", tries_later)
        record = await engine.ended("t", within=5)
        assert (record.error["kind"], RAN["tries-later"]) == ("deadline_exceeded", 1)


# -- siblings of a step in its retry delay


@zart_durable("delayed-first")
async def delayed_first() -> None:
    await asyncio.gather(retrying(), gated())


@zart_durable("delayed-last")
async def delayed_last() -> None:
    await asyncio.gather(gated(), retrying())


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often it was tried to put a turn down."""
    counted: collections.Counter[str] = collections.Counter()
    put_down = Turn.put_down

    def count(turn: Turn) -> None:
        counted["looks"] += 1
        put_down(turn)

    monkeypatch.setattr(Turn, "put_down", count)
    return counted


@pytest.mark.parametrize("body", [delayed_first, delayed_last], ids=["first", "last"])
async def test_a_step_beside_one_in_its_retry_delay_runs_to_its_end_and_is_kept(
    database: Database, looks: collections.Counter[str], body: zart.DurableExecution[None, None]
) -> None:
    config = WorkerConfig(lease_timeout="1h", park_grace=0)
    async with Engine(database, [body], config=config) as engine:
        await engine.start("s", body)
        await eventually(lambda: RAN["gated"] and RAN["retrying"] and looks["looks"] >= 2)
        GATES["gated"].set()
        await _holds_nothing(engine)
        assert [step.name for step in await engine.history("s") if step.status == "completed"] == ["gated"]
        assert (RAN["gated"], (await engine.record("s")).status) == (1, ExecutionStatus.WAITING)


async def test_a_retry_delay_without_grace_beside_a_running_step_does_not_spin(
    database: Database, looks: collections.Counter[str]
) -> None:
    config = WorkerConfig(lease_timeout="1h", park_grace=0)
    async with Engine(database, [delayed_last], config=config) as engine:
        await engine.start("s", delayed_last)
        await eventually(lambda: RAN["gated"] and RAN["retrying"] and looks["looks"])
        beats, before = engine.loops[0].place.loop_count, looks["looks"]
        await eventually(lambda: engine.loops[0].place.loop_count >= beats + 3)
        assert looks["looks"] - before < 50
        GATES["gated"].set()


# -- what goes on behind an ending


async def test_a_capture_in_a_task_of_the_body_ends_when_the_claim_is_lost(database: Database) -> None:
    async def capture_later() -> None:
        await GATES["gated"].wait()
        await zart.capture("kept", lambda: 1)

    @zart_durable("captures-beside")
    async def captures_beside() -> int:
        TASKS.append(asyncio.create_task(capture_later()))
        return await gated()

    async with Engine(database, [captures_beside], config=CONFIG) as engine:
        await engine.start("c", captures_beside)
        await eventually(lambda: RAN["gated"])
        await engine.take_over(engine.loops[0])
        GATES["gated"].set()
        assert (await engine.ended("c")).status == ExecutionStatus.COMPLETED
        await eventually(lambda: all(task.done() for task in TASKS), within=5)


async def test_a_task_that_outlives_its_turn_and_calls_zart_again_and_again_does_not_keep_the_event_loop(
    database: Database,
) -> None:
    too_many = 100_000

    async def insist() -> None:
        await GATES["ended"].wait()
        while RAN["refused"] < too_many and not GATES["enough"].is_set():
            try:
                await echo(1)
            except NotInExecution:
                RAN["refused"] += 1

    @zart_durable("forgets")
    async def forgets() -> int:
        TASKS.append(asyncio.create_task(insist()))
        return 1

    async with Engine(database, [forgets], config=CONFIG) as engine:
        await engine.start("f", forgets)
        await engine.ended("f")
        await _holds_nothing(engine)
        GATES["ended"].set()
        await eventually(lambda: RAN["refused"])
        GATES["enough"].set()
        await TASKS[0]
        assert 0 < RAN["refused"] < too_many
        assert RAN["echo-1"] == 0


async def test_run_returns_though_threads_of_steps_go_on(database: Database) -> None:
    released = threading.Event()

    @zart_step("blocks")
    def blocks() -> None:
        RAN["blocks"] += 1
        released.wait(20)

    @zart_durable("blocking")
    async def blocking() -> None:
        await blocks()

    more_than_the_default_executor_has = 40
    registry = TaskRegistry()
    registry.register(blocking)
    try:
        async with PostgresScheduler.connect(database.dsn) as scheduler:
            for n in range(more_than_the_default_executor_has):
                await scheduler.start_for(blocking, f"b{n}")
            worker = Worker(scheduler, registry, WorkerConfig(shutdown_timeout="100ms"))
            running = asyncio.create_task(worker.run())
            await eventually(lambda: worker.place.held == more_than_the_default_executor_has and RAN["blocks"])
            worker.stop()
            await asyncio.wait_for(asyncio.shield(running), 5)
            assert not released.is_set()
    finally:
        released.set()
