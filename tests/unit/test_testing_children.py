"""zart.testing.Run with children: scheduled steps and child executions, each a run of its own on the same clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import zart
from zart import TaskRegistry, ZartStep, zart_durable, zart_step
from zart.engine.children import Child
from zart.engine.spec import DurableSpec
from zart.errors import (
    ChildFailed,
    ExecutionCancelled,
    ExecutionFailed,
    InvalidArgument,
    SerializationError,
    StepFailed,
    StepNotRegistered,
)
from zart.model import Verb
from zart.testing import CrashMattered, Run, RunStuck, crash_everywhere
from zart.testing.crashes import Moment, Point
from zart.testing.execution import Execution
from zart.testing.turns import Pass

RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


class Refused(Exception):
    pass


@dataclass
class Item:
    tags: list[str]


@zart_step("double-{number}", raises=Refused, retry="fixed(1, 1h)")
async def double(number: int) -> int:
    RAN.append(number)
    if number == 13:
        raise Refused("unlucky")
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@zart_durable("doubles")
async def doubles(numbers: list[int]) -> list[str]:
    return [str(outcome) for outcome in await zart.wait([zart.schedule(double(number)) for number in numbers])]


@zart_durable("order")
async def order(number: int) -> int:
    await zart.sleep("nap", "1h")
    return await double(number) + await zart.schedule(double(number + 1))


@zart_durable("orders")
async def orders(numbers: list[int]) -> list[int]:
    handles = [zart.schedule(order(number).named(f"order-{number}")) for number in numbers]
    return [await handle for handle in handles]


# -- scheduled steps


async def test_outcomes_come_in_the_order_given_failures_included() -> None:
    @zart_durable("three")
    async def three() -> list[str]:
        handles = [zart.schedule(double(number)) for number in (4, 13, -1)]
        return [type(outcome).__name__ for outcome in await zart.wait(handles)]

    run = Run(three)
    assert await run.result() == ["Ok", "BusinessErr", "ZartErr"]
    assert run.starts == {"double-4": 1, "double-13": 1, "double--1": 2}
    assert (run.passes, run.elapsed) == (2, timedelta(hours=1))


async def test_scheduled_steps_are_in_the_history_as_children() -> None:
    run = Run(doubles, [1, 13])
    await run.result()
    assert [(record.name, record.kind, record.status) for record in run.history] == [
        ("double-1", "child", "completed"),
        ("double-13", "child", "failed"),
    ]


async def test_children_run_in_the_order_they_were_made_or_in_one_that_a_seed_gives() -> None:
    async def order_of(seed: int | None) -> tuple[Any, ...]:
        RAN.clear()
        await Run(doubles, list(range(8)), seed=seed).result()
        return tuple(RAN)

    assert await order_of(None) == tuple(range(8))
    assert len({await order_of(seed) for seed in range(5)}) > 1
    assert await order_of(7) == await order_of(7)


async def test_a_scheduled_step_sees_its_parents_id_name_and_data_and_its_own_attempt() -> None:
    @zart_step("sees", retry="fixed(1, 1s)")
    async def sees() -> str:
        context = zart.context()
        if not context.is_retry():
            raise ConnectionError
        return f"{context.execution_id} {context.task_name} {context.data} {context.current_attempt}"

    @zart_durable("parent")
    async def parent(data: str) -> str:
        return await zart.schedule(sees())

    assert await Run(parent, "given", execution_id="order-7").result() == "order-7 parent given 1"


async def test_arguments_are_the_copies_that_another_worker_would_get() -> None:
    @zart_step("tag")
    async def tag(item: Item) -> list[str]:
        return item.tags

    @zart_durable("tags")
    async def tags() -> list[str]:
        item = Item(["a"])
        handle = zart.schedule(tag(item))
        item.tags.append("b")
        return await handle

    assert await Run(tags).result() == ["a"]


async def test_what_cannot_be_kept_is_refused_where_it_is_scheduled() -> None:
    @zart_step("takes")
    async def takes(value: Any) -> None: ...

    @zart_durable("gives")
    async def gives() -> None:
        _ = zart.schedule(takes(object()))

    with pytest.raises(ExecutionFailed, match=r"SerializationError: arguments of step 'takes' at \$.value"):
        await Run(gives).result()


async def test_a_handle_gives_the_same_twice_and_after_another_wait() -> None:
    @zart_durable("twice")
    async def twice() -> list[int]:
        first, second = zart.schedule(double(1)), zart.schedule(double(2))
        await zart.sleep("nap", "1d")
        return [await second, await first, await second]

    run = Run(twice)
    assert await run.result() == [4, 2, 4]
    assert run.starts == {"double-1": 1, "double-2": 1}


async def test_a_handle_that_nobody_awaits_is_waited_for_and_its_failure_is_the_bodys() -> None:
    @zart_durable("leaves")
    async def leaves(number: int) -> str:
        _ = zart.schedule(double(number))
        return "done"

    assert await Run(leaves, 1).result() == "done"
    assert RAN == [1]
    with pytest.raises(ExecutionFailed, match="unlucky"):
        await Run(leaves, 13).result()


async def test_a_step_written_as_a_class_can_be_scheduled() -> None:
    @zart_durable("zips")
    async def zips() -> str:
        return await zart.schedule(LookUpZip("1010"))

    assert await Run(zips).result() == "Vienna 1010"


@dataclass
class LookUpZip(ZartStep[str]):
    code: str

    def step_name(self) -> str:
        return f"zip-{self.code}"

    async def run(self) -> str:
        return f"Vienna {self.code}"


async def test_a_parent_is_woken_when_what_it_waits_for_is_there_and_not_before() -> None:
    @zart_step("slow", retry="fixed(1, 3d)")
    async def slow() -> str:
        if zart.context().current_attempt == 0:
            raise ConnectionError
        return "slow"

    @zart_durable("picks")
    async def picks() -> list[Any]:
        late, soon = zart.schedule(slow()), zart.schedule(double(1))
        first = await soon
        at = await zart.now("soon")
        return [first, await late, (await zart.now("late") - at).days]

    run = Run(picks)
    assert await run.result() == [2, "slow", 3]
    assert run.passes == 3
    assert [write.what for write in run._plan.writes].count(Verb.HOLD) == 1


# -- child executions


async def test_children_have_journals_of_their_own_and_wait_at_the_same_time() -> None:
    run = Run(orders, [1, 5])
    assert await run.result() == [2 + 4, 10 + 12]
    assert run.elapsed == timedelta(hours=1)
    assert run.starts == dict.fromkeys(
        ["order-1/double-1", "order-1/double-2", "order-5/double-5", "order-5/double-6"], 1
    )


async def test_a_child_has_an_id_that_tells_whose_it_is() -> None:
    @zart_durable("tells")
    async def tells(data: int) -> str:
        return f"{zart.context().execution_id} {zart.context().data}"

    @zart_durable("asks")
    async def asks() -> str:
        return await tells(7)

    assert await Run(asks).result() == "zart:1/1/tells 7"


async def test_a_failed_child_is_an_error_that_can_be_caught() -> None:
    @zart_durable("fails", retry="fixed(1, 10s)")
    async def fails() -> None:
        RAN.append(zart.context().current_attempt)
        raise KeyError("no")

    @zart_durable("catches")
    async def catches() -> str:
        try:
            await fails()
        except ChildFailed as failed:
            return f"{failed.kind} {failed.type_name} {failed.step}"
        return "none"

    run = Run(catches)
    assert await run.result() == "body_failed KeyError fails"
    assert (RAN, run.elapsed) == ([0, 1], timedelta(seconds=10))


@pytest.mark.parametrize(("own", "of_parent", "hours"), [("1h", None, 1), ("9h", "2h", 2)])
async def test_a_childs_deadline_is_its_own_and_never_past_its_parents(
    own: str, of_parent: str | None, hours: int
) -> None:
    @zart_durable("endless", timeout=own)
    async def endless() -> None:
        await zart.sleep("nap", "90d")

    @zart_durable("parent", timeout=of_parent)
    async def parent() -> str:
        try:
            await endless()
        except ChildFailed as failed:
            return failed.kind
        return "none"

    run = Run(parent)
    assert await run.advance("30m") == "waiting"
    assert [each.deadline for each in run._execution.children.values()] == [hours * 3600]
    if of_parent is None:
        assert await run.result() == "deadline_exceeded"
    else:
        with pytest.raises(ExecutionFailed, match="deadline"):
            await run.result()
    assert run.elapsed == timedelta(hours=hours)


async def test_a_cancel_ends_children_with_their_parent_and_interrupts_what_they_run() -> None:
    @zart_step("endless")
    async def endless() -> None:
        asyncio.get_running_loop().call_soon(run.cancel)
        try:
            await asyncio.Event().wait()
        finally:
            RAN.append("interrupted")

    @zart_durable("child")
    async def child() -> None:
        await endless()

    @zart_durable("parent")
    async def parent() -> None:
        await child()

    run = Run(parent)
    async with asyncio.timeout(5):
        with pytest.raises(ExecutionCancelled):
            await run.result()
    assert RAN == ["interrupted"]


async def test_children_of_a_failed_execution_end_with_it() -> None:
    @zart_durable("late")
    async def late() -> None:
        await zart.sleep("nap", "1d")
        RAN.append("late")

    @zart_durable("middle")
    async def middle() -> None:
        _ = zart.schedule(late())
        await double(-1)

    @zart_durable("top")
    async def top() -> str:
        try:
            await middle()
        except ChildFailed:
            await zart.sleep("long", "2d")
        return "done"

    assert await Run(top).result() == "done"
    assert RAN == [-1, -1]


async def test_a_retry_of_the_parent_runs_failed_children_again_and_no_others() -> None:
    @zart_durable("second-time")
    async def second_time() -> str:
        RAN.append("child")
        if RAN.count("child") == 1:
            raise ConnectionError
        await zart.sleep("nap", "1h")
        return "at last"

    @zart_durable("retried", retry="fixed(1, 10s)")
    async def retried() -> list[Any]:
        return [await zart.schedule(double(1)), await second_time()]

    run = Run(retried)
    assert await run.result() == [2, "at last"]
    assert RAN == [1, "child", "child", "child"]
    assert (run.elapsed, run.passes) == (timedelta(hours=1, seconds=10), 5)


async def test_an_event_for_a_child_is_offered_by_its_name() -> None:
    @zart_durable("waits")
    async def waits() -> int:
        return await zart.wait_for_event("go", int)

    @zart_durable("asks")
    async def asks() -> int:
        return await waits().named("first") + await waits().named("second")

    run = Run(asks)
    run.offer_event("go", 1, after="1h", child="first")
    with pytest.raises(RunStuck, match=r"'zart:1/1/second' waits .* run.offer_event\('go', ..., child='second'\)"):
        await run.result()
    run.offer_event("go", 2, child="second")
    assert await run.result() == 3
    with pytest.raises(InvalidArgument, match="'test' has no child execution 'third' after 1:00:00"):
        run.offer_event("go", 3, child="third")


async def test_a_child_that_calls_itself_for_ever_is_stuck_and_not_endless() -> None:
    @zart_durable("recurs")
    async def recurs(depth: int) -> None:
        await recurs(depth + 1)

    with pytest.raises(RunStuck, match="more than 50 deep"):
        await Run(recurs, 0).result()


# -- registration and the database


async def test_everything_can_be_scheduled_unless_a_registry_says_what() -> None:
    registry = TaskRegistry()
    registry.register(orders)
    registry.register(order)
    with pytest.raises(ExecutionFailed, match=r"ChildFailed.*StepNotRegistered: step 'double-\{number\}'"):
        await Run(orders, [1], registry=registry).result()
    registry.register(double)
    assert await Run(orders, [1], registry=registry).result() == [6]


async def test_what_is_not_registered_is_refused_where_it_is_scheduled() -> None:
    @zart_durable("schedules")
    async def schedules() -> str:
        try:
            _ = zart.schedule(double(1))
        except StepNotRegistered:
            return "refused"
        return "made"

    assert await Run(schedules, registry=TaskRegistry()).result() == "refused"


@pytest.mark.parametrize("scheduled", [False, True])
async def test_trx_names_the_fixture_that_gives_a_database(scheduled: bool) -> None:
    @zart_step("transfers")
    async def transfers() -> None:
        await zart.trx()

    @zart_durable("pays")
    async def pays() -> str:
        try:
            await (zart.schedule(transfers()) if scheduled else transfers())
        except StepFailed as failed:
            return str(failed)
        return "none"

    told = await Run(pays).result()
    assert "NotInExecution" in told
    assert "has no database; test such a step with a worker on the database of the fixture zart_database" in told


# -- crashes


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("order-1", [1, 1]),
        ("order-1/double-1", [2, 1]),
        ("order-1/double-2", [1, 2]),
    ],
)
async def test_a_crash_before_an_outcome_repeats_the_step_and_one_after_it_does_not(
    name: str, counts: list[int]
) -> None:
    for repeated in (True, False):
        run = Run(orders, [1])
        if repeated:
            run.crash_before(name)
        else:
            run.crash_after(name)
        assert await run.result() == [6]
        assert run.crashes == 1
        assert list(run.starts.values()) == (counts if repeated else [1, 1])


async def test_a_failed_try_of_a_scheduled_step_can_be_crashed_at() -> None:
    run = Run(doubles, [-1])
    run.crash_before("double--1", attempt=1)
    run.crash_after("double--1")
    assert "RetryExhausted" in (await run.result())[0]
    assert (run.crashes, run.starts) == (2, {"double--1": 3})


async def test_a_worker_is_killed_around_the_making_of_children_and_each_outcome() -> None:
    runs: list[Run[Any]] = []
    assert await crash_everywhere(orders, [1, 5], prepare=runs.append) == [6, 22]
    assert sum(run.crashes for run in runs) == len(runs) - 2
    killed = {str(run._plan.writes[number // 2]) for number, run in enumerate(runs[2:])}
    assert killed == {
        "the making of 'order-1' and 'order-5'",
        "parking",
        "sleep 'order-1/nap'",
        "sleep 'order-5/nap'",
        "parking of 'order-1'",
        "parking of 'order-5'",
        "the result of step 'order-1/double-1'",
        "the result of step 'order-5/double-5'",
        "the making of 'order-1/double-2'",
        "the making of 'order-5/double-6'",
        "the outcome of 'order-1/double-2'",
        "the outcome of 'order-5/double-6'",
        "the outcome of 'order-1'",
        "the outcome of 'order-5'",
        "the end",
    }


async def test_no_step_begins_before_what_was_scheduled_before_it_is_made() -> None:
    @zart_step("beside")
    async def beside() -> None:
        await asyncio.sleep(0.01)

    @zart_durable("both")
    async def both() -> int:
        handle = zart.schedule(double(1))
        await beside()
        return await handle

    run = Run(both)
    run._plan.points.append(Point(Moment.BEFORE, number=1))
    assert await run.result() == 2
    assert [str(write) for write in run._plan.writes[:2]] == ["the making of 'double-1'"] * 2
    assert run.starts["beside"] == 1


async def test_results_and_errors_of_children_are_the_same_live_and_replayed() -> None:
    @zart_durable("mixed")
    async def mixed() -> list[str]:
        told = [repr(outcome) for outcome in await zart.wait([zart.schedule(double(one)) for one in (1, 13, -1)])]
        for number in (13, -1):
            try:
                await order(number).named(f"order-{number}")
            except ChildFailed as failed:
                told.append(f"{failed!r} {failed.kind} {failed.type_name} {failed.step}")
        return told

    assert len(await crash_everywhere(mixed)) == 5


async def test_a_child_that_is_not_idempotent_is_found() -> None:
    @zart_step("count")
    async def count() -> int:
        RAN.append("counted")
        return len(RAN)

    @zart_durable("counts")
    async def counts() -> int:
        return await zart.schedule(count())

    with pytest.raises(CrashMattered, match="killed before the outcome of 'count' was stored") as found:
        await crash_everywhere(counts, prepare=lambda _: RAN.clear())
    assert "'counts' does not survive 1 of 8 crashes" in str(found.value)


async def test_a_child_that_runs_again_though_its_outcome_was_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Execution.make

    def make_anew(self: Execution, child: Child, work: DurableSpec, data: bytes) -> None:
        self.children.pop(child.key, None)
        make(self, child, work, data)

    monkeypatch.setattr(Execution, "make", make_anew)
    history = Pass._history
    monkeypatch.setattr(Pass, "_history", lambda self, epoch: (self._execution.path and history(self, epoch)) or None)
    monkeypatch.setattr("zart.testing.execution.MAX_PASSES", 3)
    with pytest.raises(CrashMattered, match="'order-1' began again, though its result was kept"):
        await crash_everywhere(orders, [1])


def test_inputs_of_children_are_refused_as_those_of_executions() -> None:
    @zart_durable("takes")
    async def takes(data: Any) -> None: ...

    @zart_durable("gives")
    async def gives() -> str:
        try:
            await takes(object())
        except SerializationError as error:
            return str(error)
        return "none"

    assert "input of child execution 'takes'" in asyncio.run(Run(gives).result())
