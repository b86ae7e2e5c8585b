"""The engine against a real PostgreSQL: what a body may rely on, one sentence each."""

from __future__ import annotations

import asyncio
import collections
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine, refuse_results_like
from tests.support.eventually import eventually
from zart import NonRetryable, WorkerConfig, zart_durable, zart_step
from zart.errors import DatabaseError, DuplicateStepName, NotInBody, RetryExhausted, StepFailed, StepTimedOut
from zart.meters import DATABASE_ERRORS, EXECUTIONS_COMPLETED, RECONNECTS
from zart.metrics import total as counted
from zart.model import ExecutionStatus

RAN: collections.Counter[str] = collections.Counter()
SEEN: dict[str, Any] = {}
GATES: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    SEEN.clear()
    GATES.clear()


@dataclass
class Order:
    name: str
    amount: int


@zart_step("double-{n}")
async def double(n: int) -> int:
    RAN[f"double-{n}"] += 1
    return n * 2


@zart_step("total")
async def total(order: Order) -> Order:
    return Order(order.name, order.amount + 1)


@zart_durable("sum-up")
async def sum_up(n: int) -> int:
    return sum([await double(i) for i in range(n)])


@zart_durable("order")
async def process_order(order: Order) -> Order:
    return await total(order)


async def test_an_execution_runs_its_steps_and_keeps_every_result(database: Database) -> None:
    async with Engine(database, [sum_up]) as engine:
        await engine.start("a", sum_up, 5)
        record = await engine.ended("a")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, 20)
        steps = await engine.history("a")
        assert [(step.name, step.result, step.status) for step in steps] == [
            (f"double-{n}", 2 * n, "completed") for n in range(5)
        ]
        assert record.started_at is not None
        assert record.finished_at is not None
        assert record.created_at <= record.started_at <= record.finished_at


async def test_inputs_and_results_are_of_their_annotated_types(database: Database) -> None:
    async with Engine(database, [process_order]) as engine:
        await engine.start("o", process_order, {"name": "x", "amount": 1})
        assert (await engine.ended("o")).output == {"name": "x", "amount": 2}


async def test_an_input_that_does_not_decode_fails_that_execution_only(database: Database) -> None:
    async with Engine(database, [process_order]) as engine:
        await engine.start("bad", process_order, {"name": 3})
        await engine.start("good", process_order, {"name": "x", "amount": 1})
        bad = await engine.ended("bad")
        assert bad.status == ExecutionStatus.FAILED
        assert bad.error["kind"] == "input_refused"
        assert (await engine.ended("good")).status == ExecutionStatus.COMPLETED


async def test_many_executions_on_two_workers_all_complete_once(database: Database) -> None:
    async with Engine(database, [sum_up], workers=2) as engine:
        await asyncio.gather(*(engine.start(f"e{i}", sum_up, 3) for i in range(40)))
        await engine.all_ended()
        count = await engine.connection.fetchrow(
            "select count(*) filter (where status = 1), (select count(*) from zart.zart_tasks)"
            " from zart.zart_executions"
        )
        assert tuple(count or ()) == (40, 120)
        assert {f"double-{n}": 40 for n in range(3)} == RAN


# -- crashes, zombies, cut connections


async def test_a_worker_whose_claims_were_taken_over_writes_nothing_and_works_on_under_another_name(
    database: Database,
) -> None:
    GATES["wait"] = asyncio.Event()

    @zart_step("wait")
    async def wait() -> int:
        RAN["wait"] += 1
        await GATES["wait"].wait()
        return RAN["wait"]

    @zart_durable("waits")
    async def waits() -> int:
        return await double(1) + await wait()

    async with Engine(database, [waits]) as engine:
        await engine.start("z", waits)
        await eventually(lambda: RAN["wait"] == 1)
        before = engine.loops[0].place.worker_id
        assert await engine.take_over(engine.loops[0]) == 1
        GATES["wait"].set()
        record = await engine.ended("z")
        assert record.status == ExecutionStatus.COMPLETED
        assert RAN == {"double-1": 1, "wait": 2}
        assert engine.loops[0].place.worker_id != before


async def test_cut_connections_lose_and_repeat_nothing(database: Database) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    committed: dict[str, int] = {}

    @zart_step("part-{n}")
    async def part(n: int) -> int:
        name = f"{zart.context().execution_id}/{n}"
        assert name not in committed, f"{name} was committed and began again"
        await asyncio.sleep(0.0005)
        return n

    @zart_durable("parts")
    async def parts() -> int:
        done = 0
        for n in range(6):
            done += await part(n)
            committed[f"{zart.context().execution_id}/{n}"] = n
        return done

    async with Engine(database, [parts], workers=2, config=WorkerConfig(max_concurrent_tasks=20)) as engine:
        await eventually(lambda: all(loop.place.ready for loop in engine.loops))
        started = cuts = 0
        while cuts < 20 or await engine.connection.fetchval("select count(*) from zart.zart_queue"):
            if cuts < 20:
                await asyncio.gather(*(engine.start(f"p{started + i}", parts) for i in range(20)))
                started += 20
            cuts += await engine.cut_connections()
            await asyncio.sleep(chance.random() * 0.05)
            for task in engine.tasks:
                assert not task.done()
            # Claims of rows that were locked stay with the old name; a supervisor would free them.
            await engine.connection.execute(
                "update zart.zart_queue set worker = null where worker is not null"
                " and not exists (select from zart.zart_workers w where w.id = worker)"
            )
        rows = await engine.connection.fetch("select status, output::text from zart.zart_executions")
        assert {(row["status"], row["output"]) for row in rows} == {(1, "15")}
        assert await engine.connection.fetchval("select count(*) from zart.zart_tasks") == 6 * started
        assert sum(loop.place.words[RECONNECTS] for loop in engine.loops) > 2


async def test_a_value_that_postgresql_refuses_fails_only_its_own_execution(database: Database) -> None:
    @zart_step("say")
    async def say(word: str) -> str:
        return word

    @zart_durable("says")
    async def says(word: str) -> str:
        return await say(word) + await say("x").named("again")

    async with Engine(database, [says, sum_up]) as engine:
        await refuse_results_like(engine.connection, "poison")
        words = ["poison" if i == 17 else f"w{i}" for i in range(40)]
        await asyncio.gather(*(engine.start(f"s{i}", says, word) for i, word in enumerate(words)))
        await engine.all_ended()
        rows = await engine.connection.fetch("select execution_id, status, error::text from zart.zart_executions")
        assert {row["execution_id"]: row["status"] for row in rows} == {f"s{i}": 2 if i == 17 else 1 for i in range(40)}
        error = next(row["error"] for row in rows if row["status"] == 2)
        assert "say" in error
        assert "23514" in error
        assert "poison" not in error


# -- failures, retries, timeouts


async def test_a_failed_step_is_retried_and_its_failed_tries_are_kept(database: Database) -> None:
    @zart_step("flaky", retry="fixed(3, 10ms)")
    async def flaky() -> int:
        RAN["flaky"] += 1
        SEEN[f"attempt {RAN['flaky']}"] = zart.context().current_attempt
        if RAN["flaky"] < 3:
            raise ValueError("not yet")
        return 7

    @zart_durable("tries")
    async def tries() -> int:
        return await flaky()

    async with Engine(database, [tries]) as engine:
        await engine.start("t", tries)
        assert (await engine.ended("t")).output == 7
        (step,) = await engine.history("t")
        assert step.attempts == 3
        assert [failed.error["message"] for failed in step.failed_attempts] == ["not yet", "not yet"]
        assert SEEN == {"attempt 1": 0, "attempt 2": 1, "attempt 3": 2}


async def test_a_delay_longer_than_the_grace_frees_the_slot_and_the_count_survives(database: Database) -> None:
    @zart_step("slow-retry", retry="fixed(2, 300ms)")
    async def slow_retry() -> str:
        RAN["slow-retry"] += 1
        raise ValueError(f"try {RAN['slow-retry']}")

    @zart_durable("parks")
    async def parks() -> str:
        try:
            return await slow_retry()
        except RetryExhausted as error:
            return f"{error.attempts} {error.last_error}"

    config = WorkerConfig(park_grace="20ms", max_concurrent_tasks=1, lease_timeout="1h")
    async with Engine(database, [parks, sum_up], config=config) as engine:
        await engine.start("p", parks)
        await eventually(lambda: RAN["slow-retry"] == 1)
        await eventually(lambda: not engine.loops[0].turns)
        assert (await engine.record("p")).status == ExecutionStatus.WAITING
        await engine.start("other", sum_up, 2)
        assert (await engine.ended("other")).output == 2
        record = await engine.ended("p")
        assert record.output == "3 ValueError: try 3"
        assert RAN["slow-retry"] == 3


async def test_a_failure_comes_back_as_data_the_same_live_and_replayed(database: Database) -> None:
    class Declined(Exception):
        def __init__(self, code: int, *, bank: str) -> None:
            super().__init__(code)
            self.bank = bank

    GATES["hold"] = asyncio.Event()

    @zart_step("decline", raises=Declined)
    async def decline() -> None:
        RAN["decline"] += 1
        raise Declined(51, bank="x")

    @zart_step("break")
    async def break_down() -> None:
        raise KeyError("k")

    @zart_step("hold")
    async def hold() -> None:
        RAN["hold"] += 1
        await GATES["hold"].wait()

    @zart_durable("fails")
    async def fails() -> None:
        try:
            await decline()
        except Declined as error:
            SEEN[f"declined {RAN['hold']}"] = (error.args, error.bank)
        try:
            await break_down()
        except StepFailed as error:
            SEEN[f"broken {RAN['hold']}"] = (error.type_name, error.detail, error.step, error.attempts)
        await hold()
        await break_down().named("again")

    async with Engine(database, [fails]) as engine:
        await engine.start("f", fails)
        await eventually(lambda: RAN["hold"] == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold"] == 2)
        GATES["hold"].set()
        record = await engine.ended("f")
        assert record.status == ExecutionStatus.FAILED
        assert record.error["kind"] == "step_failed"
        assert record.error["step"] == "again"
        assert SEEN["declined 0"] == SEEN["declined 1"] == ((51,), "x")
        assert SEEN["broken 0"] == SEEN["broken 1"] == ("KeyError", "'k'", "break", 1)
        assert RAN["decline"] == 1


async def test_non_retryable_fails_at_once(database: Database) -> None:
    @zart_step("never-again", retry="fixed(5, 1ms)")
    async def never_again() -> None:
        RAN["never-again"] += 1
        raise NonRetryable("no")

    @zart_durable("gives-up")
    async def gives_up() -> None:
        await never_again()

    async with Engine(database, [gives_up]) as engine:
        await engine.start("n", gives_up)
        assert (await engine.ended("n")).status == ExecutionStatus.FAILED
        assert RAN["never-again"] == 1


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
async def test_a_step_timeout_is_final(database: Database, scope: Any) -> None:
    @zart_step("slow", timeout="50ms", timeout_scope=scope, retry="fixed(5, 1ms)")
    async def slow() -> None:
        RAN["slow"] += 1
        await asyncio.sleep(60)

    @zart_durable("times-out")
    async def times_out() -> str:
        try:
            await slow()
        except StepTimedOut as error:
            return str(error)
        return "no"

    async with Engine(database, [times_out]) as engine:
        await engine.start("s", times_out)
        assert "0.05 s" in (await engine.ended("s")).output
        assert RAN["slow"] == 1


async def test_a_global_timeout_counts_all_tries(database: Database) -> None:
    @zart_step("fails-slowly", timeout="200ms", retry="fixed(1000, 30ms)")
    async def fails_slowly() -> None:
        RAN["fails-slowly"] += 1
        raise ValueError

    @zart_durable("runs-out")
    async def runs_out() -> str:
        try:
            await fails_slowly()
        except StepTimedOut:
            return "timed out"
        return "no"

    async with Engine(database, [runs_out]) as engine:
        await engine.start("g", runs_out)
        assert (await engine.ended("g")).output == "timed out"
        assert 2 <= RAN["fails-slowly"] <= 8


async def test_an_execution_is_retried_over_the_same_journal(database: Database) -> None:
    @zart_step("unsure")
    async def unsure() -> int:
        RAN["unsure"] += 1
        if RAN["unsure"] < 3:
            raise ValueError("unsure")
        return 1

    @zart_durable("again", retry="fixed(3, 10ms)")
    async def again() -> list[int]:
        SEEN[f"attempt {zart.context().current_attempt}"] = zart.context().is_retry()
        return [await double(4), await unsure()]

    async with Engine(database, [again]) as engine:
        await engine.start("r", again)
        record = await engine.ended("r")
        assert (record.output, record.attempt, record.error) == ([8, 1], 2, None)
        assert RAN == {"double-4": 1, "unsure": 3}
        assert SEEN == {"attempt 0": False, "attempt 1": True, "attempt 2": True}


async def test_an_execution_fails_at_its_deadline(database: Database) -> None:
    @zart_step("forever")
    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            RAN["stopped"] += 1

    @zart_durable("late", timeout="200ms")
    async def late() -> None:
        await forever()

    async with Engine(database, [late]) as engine:
        await engine.start("d", late)
        record = await engine.ended("d", within=5)
        assert record.error["kind"] == "deadline_exceeded"
        assert RAN["stopped"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_a_step_that_raises_a_base_exception_fails_and_the_worker_lives(
    database: Database, error: type[BaseException]
) -> None:
    @zart_step("raise-base")
    async def raise_base() -> None:
        raise error

    @zart_durable("base")
    async def base() -> str:
        try:
            await raise_base()
        except StepFailed as failed:
            return failed.type_name
        return "no"

    async with Engine(database, [base, sum_up]) as engine:
        await engine.start("b", base)
        assert error.__name__ in (await engine.ended("b")).output
        await engine.start("after", sum_up, 1)
        assert (await engine.ended("after")).status == ExecutionStatus.COMPLETED


async def test_an_awkward_exception_leaves_a_bounded_record(database: Database) -> None:
    class Awkward(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__("x" * 10_000_000)

        def __str__(self) -> str:
            raise RuntimeError

    @zart_durable("awkward")
    async def awkward() -> None:
        raise Awkward(1, 2)

    async with Engine(database, [awkward]) as engine:
        await engine.start("w", awkward)
        record = await engine.ended("w")
        assert record.error["kind"] == "body_failed"
        assert len(str(record.error)) < 20_000


# -- names, kinds, places


async def test_a_name_used_twice_is_refused_also_under_gather(database: Database) -> None:
    @zart_durable("twice")
    async def twice() -> None:
        await double(1)
        await double(1)

    @zart_durable("twice-at-once")
    async def twice_at_once() -> None:
        await asyncio.gather(double(1), double(1))

    async with Engine(database, [twice, twice_at_once]) as engine:
        await engine.start("1", twice)
        await engine.start("2", twice_at_once)
        for name in ("1", "2"):
            record = await engine.ended(name)
            assert record.error["type"].endswith(DuplicateStepName.__name__)
            assert "double-1" in record.error["message"]


async def test_steps_run_side_by_side_under_gather_and_task_group(database: Database) -> None:
    @zart_durable("at-once")
    async def at_once() -> list[int]:
        first = await asyncio.gather(*(double(n) for n in range(50)))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(n)) for n in range(50, 100)]
        return [*first, *(task.result() for task in tasks)]

    async with Engine(database, [at_once]) as engine:
        await engine.start("g", at_once)
        assert (await engine.ended("g")).output == [2 * n for n in range(100)]


async def test_a_step_started_and_not_awaited_is_awaited_at_the_end(database: Database) -> None:
    @zart_durable("left-over")
    async def left_over() -> int:
        SEEN["task"] = asyncio.create_task(_double_later(3))
        await asyncio.sleep(0.01)
        return 1

    async def _double_later(n: int) -> int:
        return await double(n)

    async with Engine(database, [left_over]) as engine:
        await engine.start("l", left_over)
        assert (await engine.ended("l")).output == 1
        assert [step.name for step in await engine.history("l")] == ["double-3"]


async def test_capture_and_now_are_kept(database: Database) -> None:
    GATES["kept"] = asyncio.Event()

    @zart_step("hold-on")
    async def hold_on() -> None:
        RAN["hold-on"] += 1
        await GATES["kept"].wait()

    @zart_durable("captures")
    async def captures() -> bool:
        made, moment = await zart.capture("id", uuid4), await zart.now("when")
        SEEN[f"pass {RAN['hold-on']}"] = (made, moment)
        await hold_on()
        return True

    async with Engine(database, [captures]) as engine:
        await engine.start("c", captures)
        await eventually(lambda: RAN["hold-on"] == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold-on"] == 2)
        GATES["kept"].set()
        await engine.ended("c")
        made, moment = SEEN["pass 0"]
        assert SEEN["pass 1"] == (made, moment)
        assert isinstance(made, UUID)
        assert moment.tzinfo == UTC
        assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)


async def test_body_only_calls_are_refused_inside_a_step(database: Database) -> None:
    @zart_step("misplaced")
    async def misplaced() -> str:
        inner = await double(6)
        try:
            await zart.now("when")
        except NotInBody as error:
            return f"{inner} {error}"
        return "no"

    @zart_durable("misplaces")
    async def misplaces() -> str:
        return await misplaced()

    async with Engine(database, [misplaces]) as engine:
        await engine.start("m", misplaces)
        output = (await engine.ended("m")).output
        assert output.startswith("12 now('when')")
        assert "'misplaced'" in output
        assert [step.name for step in await engine.history("m")] == ["misplaced"]


async def test_a_plain_function_step_runs_in_a_thread_with_its_context(database: Database) -> None:
    @zart_step("plain")
    def plain(n: int) -> str:
        return f"{zart.context().execution_id} {n}"

    @zart_durable("uses-plain")
    async def uses_plain() -> str:
        return await plain(3)

    async with Engine(database, [uses_plain]) as engine:
        await engine.start("x", uses_plain)
        assert (await engine.ended("x")).output == "x 3"


async def test_a_refused_value_names_step_and_path_and_fails_that_execution_only(database: Database) -> None:
    @zart_step("odd")
    async def odd() -> dict[str, Any]:
        return {"items": [1, {"price": float("nan")}]}

    @zart_durable("returns-odd")
    async def returns_odd() -> dict[str, Any]:
        return await odd()

    async with Engine(database, [returns_odd, sum_up]) as engine:
        await engine.start("odd", returns_odd)
        await engine.start("even", sum_up, 2)
        record = await engine.ended("odd")
        assert record.status == ExecutionStatus.FAILED
        assert "'odd'" in record.error["message"]
        assert "$.items[1].price" in record.error["message"]
        assert (await engine.ended("even")).status == ExecutionStatus.COMPLETED


@dataclass
class Picky:
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise RuntimeError("no debts")


async def test_code_of_a_value_s_own_type_that_raises_fails_that_execution_only(database: Database) -> None:
    @zart_step("spend")
    async def spend() -> Picky:
        bought = Picky(1)
        bought.amount = -1
        return bought

    @zart_durable("picky")
    async def picky(wanted: Picky) -> Picky:
        RAN["picky"] += 1
        return await spend()

    async with Engine(database, [picky]) as engine:
        await engine.start("input", picky, {"amount": -5})
        await engine.start("result", picky, {"amount": 5})
        refused, failed = await engine.ended("input"), await engine.ended("result")
        assert (refused.status, refused.error["kind"]) == (ExecutionStatus.FAILED, "input_refused")
        assert "no debts" in refused.error["message"]
        assert (failed.status, failed.error["step"]) == (ExecutionStatus.FAILED, "spend")
        assert "no debts" in failed.error["message"]
        assert RAN["picky"] == 1
        assert [step.status for step in await engine.history("result")] == ["failed"]


# -- cancel and drain


async def test_cancel_interrupts_a_running_step_within_a_second(database: Database) -> None:
    @zart_step("long")
    async def long() -> None:
        RAN["began"] += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            RAN["interrupted"] += 1  # swallowed on purpose: it must not become a success

    @zart_durable("cancelled")
    async def cancelled() -> str:
        await long()
        return "done"

    async with Engine(database, [cancelled]) as engine:
        await engine.start("c", cancelled)
        await eventually(lambda: RAN["began"])
        await asyncio.sleep(0.5)
        await engine.connection.fetch("select * from zart.zart_cancel_1($1, 'c')", engine.bucket("c"))
        await eventually(lambda: RAN["interrupted"], within=1.0)
        assert (await engine.record("c")).status == ExecutionStatus.CANCELLED
        assert await engine.connection.fetchval("select count(*) from zart.zart_queue") == 0
        assert await engine.history("c") == []
        await eventually(lambda: not engine.loops[0].turns)


async def test_stop_keeps_the_running_step_and_hands_the_rest_back(database: Database) -> None:
    GATES["go"] = asyncio.Event()

    @zart_step("in-flight")
    async def in_flight() -> int:
        RAN["in-flight"] += 1
        await GATES["go"].wait()
        return 1

    @zart_durable("drained")
    async def drained() -> int:
        return await in_flight() + await double(5)

    async with Engine(database, [drained]) as engine:
        await engine.start("d", drained)
        await eventually(lambda: RAN["in-flight"] == 1)
        engine.loops[0].stop()
        GATES["go"].set()
        await engine.tasks[0]
        assert [step.name for step in await engine.history("d")] == ["in-flight"]
        assert (await engine.record("d")).status == ExecutionStatus.PENDING
    async with Engine(database, [drained]) as engine:
        record = await engine.ended("d")
        assert (record.output, record.crashes) == (11, 0)
        assert RAN == {"in-flight": 1, "double-5": 1}


async def test_what_does_not_end_within_the_shutdown_timeout_is_handed_back(database: Database) -> None:
    @zart_step("endless")
    async def endless() -> None:
        RAN["endless"] += 1
        await asyncio.sleep(60)

    @zart_durable("endlessly")
    async def endlessly() -> None:
        await endless()

    config = WorkerConfig(shutdown_timeout="100ms", lease_timeout="1h")
    async with Engine(database, [endlessly], config=config) as engine:
        await engine.start("e", endlessly)
        await eventually(lambda: RAN["endless"] == 1)
        engine.loops[0].stop()
        await asyncio.wait_for(engine.tasks[0], 5)
        row = await engine.connection.fetchrow("select worker, crashes from zart.zart_queue")
        assert tuple(row or ()) == (None, 0)


async def test_a_drain_ends_even_when_somebody_holds_a_row_it_wants_to_hand_back(database: Database) -> None:
    @zart_durable("held-up")
    async def held_up() -> None:
        RAN["held-up"] += 1
        await asyncio.sleep(60)

    config = WorkerConfig(shutdown_timeout="100ms", lease_timeout="1h")
    async with Engine(database, [held_up], config=config) as engine:
        await engine.start("h", held_up)
        await eventually(lambda: RAN["held-up"] == 1)
        async with engine.connection.transaction():
            await engine.connection.execute("select from zart.zart_queue for update")
            engine.loops[0].stop()
            await asyncio.wait_for(engine.tasks[0], 10)
        left = await engine.connection.fetchrow(
            "select q.worker = w.id, w.dead from zart.zart_queue q, zart.zart_workers w"
        )
        assert tuple(left or ()) == (True, True)  # for the supervisors to sweep up


async def test_a_drain_ends_soon_while_the_database_is_away(database: Database, server_dsn: str) -> None:
    name = urlsplit(database.dsn).path[1:]
    admin = await asyncpg.connect(server_dsn)
    engine = Engine(database, [sum_up])
    loop = engine.loops[0]
    running = asyncio.create_task(loop.run())
    await eventually(lambda: loop.place.ready)
    await admin.execute(f"alter database {name} allow_connections false")
    await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
    loop.wake()
    await eventually(lambda: loop.place.words[DATABASE_ERRORS])
    loop.stop()
    await asyncio.wait_for(running, 5)
    await admin.close()


async def test_failed_executions_are_logged_and_do_not_drown_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    @zart_durable("fails-always")
    async def fails_always() -> None:
        raise LookupError("nothing there")

    async with Engine(database, [fails_always]) as engine:
        await asyncio.gather(*(engine.start(f"f{n}", fails_always) for n in range(60)))
        await engine.all_ended()
    told = [record.getMessage() for record in caplog.records if "nothing there" in record.getMessage()]
    assert 1 <= len(told) < 50
    assert told[0].startswith("execution 'f")


async def test_a_record_names_what_an_error_came_of_and_what_is_in_a_group(database: Database) -> None:
    @zart_step("tries-twice", retry="fixed(1, 1ms)")
    async def tries_twice() -> None:
        RAN["tries-twice"] += 1
        raise ValueError(f"try {RAN['tries-twice']}")

    @zart_durable("unrelated")
    async def unrelated() -> None:
        await tries_twice()

    @zart_durable("grouped")
    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(double("x"))  # type: ignore[arg-type]
            raise OSError("disk")

    async with Engine(database, [unrelated, grouped]) as engine:
        await engine.start("u", unrelated)
        await engine.start("g", grouped)
        await engine.ended("u")
        (step,) = await engine.history("u")
        assert "causes" not in step.error
        assert step.error["message"] == "try 2"
        assert "OSError: disk" in (await engine.ended("g")).error["causes"]


async def test_a_worker_that_loses_its_lease_claims_again_after_renewing_it(database: Database) -> None:
    async with Engine(database, [sum_up]) as engine:
        await eventually(lambda: engine.loops[0].place.ready)
        await engine.connection.execute("update zart.zart_workers set lease_until = now() - interval '1 h'")
        await engine.start("l", sum_up, 2)
        assert (await engine.ended("l")).output == 2
        assert counted([engine.loops[0].place], EXECUTIONS_COMPLETED) == 1


async def test_a_schema_that_is_dropped_ends_the_worker_with_one_clear_error(database: Database) -> None:
    engine = Engine(database, [sum_up])
    loop = engine.loops[0]
    task = asyncio.create_task(loop.run())
    await eventually(lambda: loop.place.ready)
    connection = await database.connect()
    await connection.execute("drop schema zart cascade")
    await connection.close()
    loop.wake()
    with pytest.raises(DatabaseError, match="zart migrate"):
        await asyncio.wait_for(task, 10)
