"""Failure handlers: after what they run, what they get, and what becomes of the execution."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine, refuse_results_like
from tests.support.eventually import eventually
from tests.support.facts import left_in_queue, operation, operations, parked
from tests.support.steps import RAN, note
from zart import BodyFailed, Failure, RetriesExhausted, StepFailed, zart_durable, zart_step
from zart.config import WorkerConfig
from zart.durable import Durable, DurableExecution
from zart.model import ExecutionStatus
from zart.store import executions

MET: list[Failure] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    MET.clear()


class Refused(Exception):
    pass


@dataclass
class Order:
    item: str


@zart_step("broken")
async def broken() -> str:
    RAN["broken"] += 1
    raise ValueError("it broke")


async def refund(data: Order, failure: Failure) -> str:
    return await note(f"refund-{data.item}")


async def look(data: object, failure: Failure) -> None:
    """Called once per pass of the handler."""
    MET.append(failure)
    await note("looked")


async def fall_ill(data: Order, failure: Failure) -> str:
    await note("ill")
    raise LookupError("the handler broke")


async def buy(data: Order) -> str:
    await note("first")
    return await broken()


order = zart_durable("order", on_failure=refund)(buy)


def looked_at(body: Any, **options: Any) -> Durable[None, Any]:
    """A durable function whose failure goes into MET."""

    async def handler(failure: Failure) -> None:
        await look(None, failure)

    made: Durable[None, Any] = zart_durable("looked-at", on_failure=handler, **options)(body)
    return made


async def failure_of(engine: Engine, durable: DurableExecution[None, Any]) -> Failure:
    """What the handler of `looked_at` got."""
    await engine.start("a", durable)
    await engine.ended("a")
    assert len({repr((type(one), vars(one))) for one in MET if not isinstance(one, RetriesExhausted)}) < 2
    return MET[0]


# -- what becomes of the execution


async def test_what_the_handler_returns_is_the_result(database: Database) -> None:
    async with Engine(database, [order]) as engine:
        await engine.start("a", order, {"item": "tea"})
        record = await engine.ended("a")
        assert (record.status, record.output, record.error) == (ExecutionStatus.COMPLETED, "refund-tea", None)
        assert RAN == {"first": 1, "broken": 1, "refund-tea": 1}
        assert await left_in_queue(engine) == 0


async def test_a_handler_that_returns_none_leaves_the_failure_as_it_is_without_one(database: Database) -> None:
    plain, handled = zart_durable("plain")(buy), zart_durable("handled", on_failure=look)(buy)
    async with Engine(database, [plain, handled]) as engine:
        await engine.start("plain", plain, {"item": "tea"})
        await engine.start("handled", handled, {"item": "tea"})
        record = await engine.ended("handled")
        assert record.status == ExecutionStatus.FAILED
        assert record.error == (await engine.ended("plain")).error
        assert RAN["looked"] == 1


async def test_of_a_handler_that_fails_the_first_failure_stands_and_its_own_is_told(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ill = zart_durable("ill", on_failure=fall_ill)(buy)
    async with Engine(database, [ill]) as engine:
        await engine.start("a", ill, {"item": "tea"})
        record = await engine.ended("a")
        assert record.status == ExecutionStatus.FAILED
        assert (record.error["step"], record.error["message"]) == (
            "broken",
            "step 'broken' failed: ValueError: it broke",
        )
        assert record.error["on_failure"]["type"] == "LookupError"
        assert record.error["on_failure"]["message"] == "the handler broke"
        assert RAN["ill"] == 1
    assert "step 'broken' failed: ValueError: it broke; its on_failure runs next" in caplog.text
    assert "its on_failure failed too: LookupError: the handler broke" in caplog.text


async def test_a_result_that_cannot_be_kept_as_the_bodys_is_a_failure_of_the_handler(database: Database) -> None:
    async def wrong(data: Order, failure: Failure) -> Any:
        return 3

    mistaken = zart_durable("mistaken", on_failure=wrong)(buy)
    async with Engine(database, [mistaken]) as engine:
        await engine.start("a", mistaken, {"item": "tea"})
        record = await engine.ended("a")
        assert (record.status, record.error["step"]) == (ExecutionStatus.FAILED, "broken")
        assert "result of execution 'a'" in record.error["on_failure"]["message"]


async def test_a_step_of_the_handler_that_fails_is_told_with_its_name(database: Database) -> None:
    async def fails_too(data: Order, failure: Failure) -> None:
        await broken()

    twice = zart_durable("twice", on_failure=fails_too)(buy)
    async with Engine(database, [twice]) as engine:
        await engine.start("a", twice, {"item": "tea"})
        record = await engine.ended("a")
        assert record.error["step"] == "broken"
        assert record.error["on_failure"]["step"] == "on_failure/broken"
        assert RAN["broken"] == 2


async def test_a_handler_may_have_no_data_when_its_body_has_none(database: Database) -> None:
    async def handler(failure: Failure) -> str:
        return f"{type(failure).__name__}"

    @zart_durable("nightly", on_failure=handler)
    async def nightly() -> str:
        return await broken()

    async with Engine(database, [nightly]) as engine:
        await engine.start("a", nightly)
        assert (await engine.ended("a")).output == "StepFailed"


async def test_the_class_form_has_its_handler_as_a_method(database: Database) -> None:
    class Buying(DurableExecution[Order, str], name="buying"):
        async def run(self, data: Order) -> str:
            return await buy(data)

        async def on_failure(self, data: Order, failure: Failure) -> str:
            return await note(f"refund-{data.item}")

    buying = Buying()
    async with Engine(database, [buying]) as engine:
        await engine.start("a", buying, {"item": "tea"})
        assert (await engine.ended("a")).output == "refund-tea"


# -- after what it runs, and what it gets


async def test_of_a_step_it_gets_what_the_body_met(database: Database) -> None:
    @zart_step("tried", retry="fixed(2, 1ms)")
    async def tried() -> None:
        raise ValueError("no")

    @looked_at
    async def body() -> None:
        await tried()

    async with Engine(database, [body]) as engine:
        met = await failure_of(engine, body)
    assert type(met) is zart.RetryExhausted
    assert (met.step, met.attempts, met.last_error) == ("tried", 3, "ValueError: no")
    assert 'raise ValueError("no")' in met.traceback_text
    assert str(met) == "step 'tried' failed 3 times, no retry is left; last: ValueError: no"


@pytest.mark.parametrize("kind", [StepFailed, zart.StepTimedOut, zart.SerializationError, zart.ChildFailed])
async def test_each_kind_of_step_failure_comes_as_itself(database: Database, kind: type[StepFailed]) -> None:
    @zart_step("slow", timeout="10ms")
    async def slow() -> None:
        await asyncio.Event().wait()

    @zart_step("odd")
    async def odd() -> Any:
        return float("nan")

    @zart_durable("child")
    async def child() -> None:
        raise ValueError("of the child")

    @looked_at
    async def body() -> None:
        try:
            match kind:
                case zart.StepTimedOut:
                    await slow()
                case zart.SerializationError:
                    await odd()
                case zart.ChildFailed:
                    await child()
                case _:
                    await broken()
        except StepFailed as met:
            texts.add(str(met))
            raise

    texts = set[str]()
    async with Engine(database, [body, child]) as engine:
        met = await failure_of(engine, body)
    assert type(met) is kind
    assert texts == {str(met)}


@pytest.mark.parametrize("error", [KeyError("its own"), Refused("declared")])
async def test_any_other_exception_of_the_body_comes_as_body_failed(database: Database, error: Exception) -> None:
    @zart_step("declares", raises=Refused)
    async def declares() -> None:
        raise error

    @looked_at
    async def body() -> None:
        if isinstance(error, KeyError):
            raise error
        await declares()

    async with Engine(database, [body]) as engine:
        met = await failure_of(engine, body)
    assert type(met) is BodyFailed
    assert met.type_name.endswith(type(error).__name__)
    assert met.detail == str(error)
    assert "in body" in met.traceback_text


async def test_it_runs_once_all_retries_are_used_up(database: Database) -> None:
    async def body() -> None:
        await note(f"pass-{zart.context().current_attempt}")
        await broken()

    retried = looked_at(body, retry="fixed(2, 5ms)")
    async with Engine(database, [retried]) as engine:
        met = await failure_of(engine, retried)
    assert type(met) is RetriesExhausted
    assert met.attempts == 3
    assert type(met.last) is StepFailed
    assert (met.last.step, met.last.detail) == ("broken", "it broke")
    assert RAN == {"pass-0": 1, "pass-1": 1, "pass-2": 1, "broken": 3, "looked": 1}


async def test_a_failure_that_is_not_retried_is_no_retries_exhausted(database: Database) -> None:
    async def body() -> None:
        raise zart.NonRetryable("never")

    hopeless = looked_at(body, retry="fixed(2, 5ms)")
    async with Engine(database, [hopeless]) as engine:
        assert type(await failure_of(engine, hopeless)) is BodyFailed


async def test_a_result_that_postgresql_refuses_is_a_failure_too(database: Database) -> None:
    @zart_step("refused")
    async def refused() -> str:
        return "unwanted"

    @looked_at
    async def of_step() -> None:
        await refused()

    async with Engine(database, [of_step]) as engine:
        await refuse_results_like(engine.connection, "unwanted")
        met = await failure_of(engine, of_step)
        assert type(met) is zart.SerializationError
        assert met.step == "refused"


async def test_it_does_not_run_when_its_execution_is_cancelled(database: Database) -> None:
    async def waiting() -> None:
        await zart.wait_for_event("go")

    durable = looked_at(waiting)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        await eventually(lambda: operation(engine, "a", "go"))
        await executions.cancel(engine.connection, engine.schema, engine.bucket("a"), "a")
        assert (await engine.ended("a")).status == ExecutionStatus.CANCELLED
        assert await left_in_queue(engine) == 0
    assert MET == []


async def test_it_does_not_run_when_its_execution_is_quarantined(database: Database) -> None:
    async def waits_and_fails() -> None:
        await zart.wait_for_event("go")
        await broken()

    durable = looked_at(waits_and_fails)
    async with Engine(database, [durable], config=WorkerConfig(lease_timeout="1h", park_grace=0)) as engine:
        await engine.start("a", durable)
        await parked(engine, "a")
        await engine.connection.execute("update zart.zart_queue set crashes = 99")
        await engine.offer("a", "go", None)
        assert (await engine.ended("a")).status == ExecutionStatus.QUARANTINED
    assert MET == []


async def test_it_does_not_run_without_the_input(database: Database) -> None:
    async with Engine(database, [order]) as engine:
        await engine.start("a", order, "no order")
        record = await engine.ended("a")
        assert (record.status, record.error["kind"]) == (ExecutionStatus.FAILED, "input_refused")
        assert "on_failure" not in record.error
        assert RAN == {}


async def test_nothing_of_it_runs_when_the_body_succeeds(database: Database) -> None:
    async def fine(data: Order) -> str:
        return await note("fine")

    durable = zart_durable("fine", on_failure=look)(fine)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable, {"item": "tea"})
        assert (await engine.ended("a")).output == "fine"
        assert await operations(engine, "a") == ["note-fine"]
    assert MET == []


# -- what the history shows


async def test_the_failure_and_the_handlers_steps_are_in_the_history(database: Database) -> None:
    async def again(data: Order, failure: Failure) -> str:
        return await note("first")

    durable = zart_durable("again", on_failure=again)(buy)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable, {"item": "tea"})
        await engine.ended("a")
        told = [(step.name, step.kind, step.status) for step in await engine.history("a")]
        assert told == [
            ("note-first", "step", "completed"),
            ("broken", "step", "failed"),
            ("on_failure", "failure", "failed"),
            ("on_failure/note-first", "step", "completed"),
        ]
        assert RAN["first"] == 2
        failure = await operation(engine, "a", "on_failure")
        assert failure is not None
        assert failure.error["message"] == "step 'broken' failed: ValueError: it broke"


async def test_a_name_used_twice_in_the_handler_is_told_as_it_is_written(database: Database) -> None:
    async def doubles(data: Order, failure: Failure) -> None:
        await note("one")
        await note("one")

    durable = zart_durable("doubles", on_failure=doubles)(buy)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable, {"item": "tea"})
        told = (await engine.ended("a")).error["on_failure"]
        assert told["type"] == "zart.errors.DuplicateStepName"
        assert "on_failure of execution 'a' uses the name 'note-one' twice" in told["message"]
        assert '.named("note-one-2")' in told["message"]
