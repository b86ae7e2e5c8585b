"""Children under attack: handles given up, passes that differ, ticks without an answer, rows that others hold."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import WorkerConfig, zart_durable, zart_step
from zart.engine.batch import Batch
from zart.engine.children import Child, Family
from zart.engine.replay import Checkpoint
from zart.engine.ticker import TickAnswer, Ticker
from zart.errors import NotInBody, StepDiverged, StepFailed
from zart.model import ExecutionStatus, Kind, Verb
from zart.store import journal
from zart.store.statements import statement

RAN: collections.Counter[str] = collections.Counter()
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

PARKED = WorkerConfig(lease_timeout="1h", park_grace=0)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    RAN.clear()
    GATES.clear()
    yield
    for gate in GATES.values():
        gate.set()


@zart_step("gated-{name}")
async def gated(name: str) -> str:
    RAN[f"began {name}"] += 1
    await GATES[name].wait()
    RAN[f"ended {name}"] += 1
    return name


@zart_step("one-{number}")
async def one(number: int) -> int:
    RAN[f"one-{number}"] += 1
    return number


async def live_children(engine: Engine) -> int:
    count: int = await engine.connection.fetchval(
        "select count(*) from zart.zart_executions where parent is not null and status = 0"
    )
    return count


# -- orphans


async def test_a_body_does_not_end_before_a_child_whose_handle_it_has_given_up(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        try:
            async with asyncio.timeout(0.05):
                await zart.schedule(gated("x"))
        except TimeoutError:
            return "given up"
        return "in time"

    async with Engine(database, [parent, gated], config=WorkerConfig(lease_timeout="1h", park_grace="1m")) as engine:
        await engine.start("a", parent)
        await eventually(lambda: RAN["began x"])
        await asyncio.sleep(0.3)
        assert not (await engine.record("a")).status.is_terminal
        GATES["x"].set()
        assert (await engine.ended("a")).output == "given up"
        assert await live_children(engine) == 0


async def test_the_failure_of_a_child_whose_handle_was_given_up_is_the_bodys(database: Database) -> None:
    @zart_step("fails")
    async def fails() -> None:
        await GATES["x"].wait()
        raise ValueError("late")

    @zart_durable("parent")
    async def parent() -> str:
        waits = asyncio.create_task(_await(zart.schedule(fails())))
        await asyncio.sleep(0.05)
        waits.cancel()
        GATES["x"].set()
        return "given up"

    async with Engine(database, [parent, fails], config=WorkerConfig(lease_timeout="1h", park_grace="1m")) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).status is ExecutionStatus.FAILED


async def _await(handle: Any) -> Any:
    return await handle


async def test_a_child_of_an_earlier_pass_that_nobody_wants_any_more_ends_with_its_parent(database: Database) -> None:
    @zart_durable("parent", retry="fixed(1, 10ms)")
    async def parent() -> str:
        RAN["passes"] += 1
        if RAN["passes"] == 1:
            _ = zart.schedule(gated("x"))
            await zart.sleep("until it is made", 0.1)
            raise ValueError("the first pass")
        return "without it"

    async with Engine(database, [parent, gated]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == "without it"
        await engine.all_ended(within=3)
        assert RAN["ended x"] == 0


async def test_what_a_task_schedules_while_the_body_waits_for_what_is_left_is_waited_for_too(
    database: Database,
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await GATES["go"].wait()
        _ = zart.schedule(gated("second"))

    @zart_durable("parent")
    async def parent() -> str:
        _ = zart.schedule(gated("first"))
        tasks.append(asyncio.create_task(later()))
        return "done"

    async with Engine(database, [parent, gated], config=WorkerConfig(lease_timeout="1h", park_grace="1m")) as engine:
        await engine.start("a", parent)
        await eventually(lambda: RAN["began first"])
        GATES["go"].set()
        await asyncio.sleep(0.05)
        GATES["first"].set()
        await eventually(lambda: RAN["began second"])
        assert not (await engine.record("a")).status.is_terminal
        GATES["second"].set()
        await engine.ended("a")
        assert await live_children(engine) == 0


# -- passes that differ


async def test_a_step_named_like_a_child_that_still_runs_is_no_second_try_of_it(database: Database) -> None:
    @zart_durable("parent", retry="fixed(1, 10ms)")
    async def parent() -> str:
        RAN["passes"] += 1
        if RAN["passes"] == 1:
            _ = zart.schedule(gated("x"))
            await zart.sleep("until it is made", 0.1)
            raise ValueError("the first pass")
        return await gated("x")

    async with Engine(database, [parent, gated]) as engine:
        await engine.start("a", parent)
        record = await engine.ended("a", within=5)
        assert record.status is ExecutionStatus.FAILED
        assert record.error is not None
        assert record.error["type"].endswith(StepDiverged.__name__)
        assert RAN["began x"] == 1


async def test_a_child_that_runs_again_is_what_the_code_now_says(database: Database) -> None:
    @zart_step("broken")
    async def broken() -> int:
        raise ValueError("always")

    @zart_durable("parent", retry="fixed(1, 10ms)")
    async def parent() -> int:
        RAN["passes"] += 1
        if RAN["passes"] == 1:
            return await zart.schedule(broken().named("x"))
        return await zart.schedule(one(7).named("x"))

    async with Engine(database, [parent, broken, one]) as engine:
        await engine.start("a", parent)
        record = await engine.ended("a")
        assert record.output == 7, record.error


# -- threads


async def test_a_thread_of_a_body_schedules_nothing_and_its_worker_lives(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        try:
            await asyncio.to_thread(lambda: [zart.schedule(one(number)) for number in range(500)])
        except NotInBody:
            return "refused"
        return "made"

    async with Engine(database, [parent, one]) as engine:
        for number in range(10):
            await engine.start(f"a{number}", parent)
        for number in range(10):
            assert (await engine.ended(f"a{number}", within=5)).output == "refused"


async def test_an_event_loop_of_a_bodys_thread_calls_nothing_and_its_worker_lives(database: Database) -> None:
    """Seen from a thread, the task that runs is any of the worker's own: a body must neither wait for it nor end it."""
    refused = 0

    async def call(number: int) -> int:
        return await one(number)

    @zart_durable("busy")
    async def busy() -> None:
        for number in range(100):
            await one(number)

    @zart_durable("parent")
    async def parent() -> str:
        nonlocal refused
        for number in range(30):
            try:
                await asyncio.to_thread(asyncio.run, call(number))
            except NotInBody:
                refused += 1
        return "done"

    async with Engine(database, [parent, busy, one], workers=1) as engine:
        for number in range(3):
            await engine.start(f"busy{number}", busy)
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == "done"
        await engine.all_ended()
        assert refused == 30


# -- drains


async def test_a_running_step_is_let_end_when_its_body_schedules_while_it_is_handed_back(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        async with asyncio.TaskGroup() as group:
            step = group.create_task(gated("x"))
            await GATES["go"].wait()
            handle = zart.schedule(one(1))
            await handle
        return step.result()

    async with Engine(database, [parent, gated, one]) as engine:
        await engine.start("a", parent)
        await eventually(lambda: RAN["began x"])
        engine.loops[0].stop()
        GATES["go"].set()
        await asyncio.sleep(0.1)
        GATES["x"].set()
        await engine.tasks[0]
        assert RAN["ended x"] == 1
        assert [(step.name, step.result) for step in await engine.history("a")] == [("gated-x", "x")]


# -- ticks


@pytest.mark.parametrize("arrives", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize("verb", [Verb.HOLD, Verb.HANDLE, Verb.RETRY, Verb.PARK, Verb.FINISH])
async def test_nothing_is_lost_or_repeated_when_a_tick_is_not_answered(
    database: Database, monkeypatch: pytest.MonkeyPatch, verb: Verb, arrives: bool
) -> None:
    send, left = Ticker.send, 1

    async def send_once(ticker: Ticker, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
        nonlocal left
        if left and any(row.verb == verb for row in batch.verbs):
            left -= 1
            if arrives:
                await send(ticker, batch, lanes, limit)
            raise ConnectionResetError("the answer is lost")
        return await send(ticker, batch, lanes, limit)

    monkeypatch.setattr(Ticker, "send", send_once)

    async def handler(failure: zart.Failure) -> str:
        RAN["handler"] += 1
        return await zart.schedule(gated("of handler"))

    @zart_durable("parent", retry="fixed(1, 10ms)", on_failure=handler)
    async def parent() -> str:
        _ = zart.schedule(gated("of body"))
        await zart.sleep("nap", 0.3)
        if await zart.schedule(one(1)) == 1:
            raise ValueError("no")
        return "never"

    GATES["of handler"].set()
    async with Engine(database, [parent, gated, one], config=PARKED) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == "of handler"
        await engine.all_ended(within=5)
        assert left == 0
        assert RAN["one-1"] == 1
        assert RAN["ended of body"] == 0
        assert RAN["ended of handler"] == 1


async def test_a_large_fan_out_is_made_while_others_keep_every_tick_full(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zart.engine.batch.MAX_TICK_BYTES", 20_000)

    @zart_step("note-{number}")
    async def note(number: int) -> str:
        return "y" * 1_000

    @zart_durable("busy")
    async def busy() -> None:
        number = 0
        while not GATES["stop"].is_set() and number < 3_000:
            await note(number)
            number += 1

    @zart_step("take-{number}")
    async def take(number: int, text: str) -> int:
        return number

    @zart_durable("parent")
    async def parent() -> int:
        handles = [zart.schedule(take(number, "x" * 900)) for number in range(20)]
        found = sum(outcome.unwrap() for outcome in await zart.wait(handles))
        GATES["stop"].set()
        return found

    async with Engine(database, [parent, busy, note, take]) as engine:
        for number in range(10):
            await engine.start(f"busy{number}", busy)
        await eventually(lambda: len(engine.loops[0].turns) == 10)
        await engine.start("a", parent)
        await engine.ended("a")
        assert GATES["stop"].is_set()
        for number in range(10):
            await engine.ended(f"busy{number}")
        steps = await engine.connection.fetchval("select count(*) from zart.zart_tasks where kind = 1")
        assert steps < 30_000, "the fan-out had to wait until all others had ended"


async def test_large_inputs_whose_parent_is_locked_are_not_in_everybodys_ticks_all_the_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sent = Ticker.send, 0

    async def count(ticker: Ticker, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
        nonlocal sent
        sent += sum(row.verb == Verb.HOLD for row in batch.verbs)
        return await send(ticker, batch, lanes, limit)

    monkeypatch.setattr(Ticker, "send", count)

    @zart_step("take")
    async def take(text: str) -> int:
        return len(text)

    @zart_durable("parent")
    async def parent() -> int:
        await GATES["go"].wait()
        return await zart.schedule(take("x" * 1_000_000))

    async with Engine(database, [parent, take], workers=1) as engine:
        await engine.start("a", parent)
        await eventually(lambda: engine.loops[0].turns)
        held = await database.connect()
        async with held.transaction():
            await held.execute("select from zart.zart_queue for update")
            GATES["go"].set()
            await asyncio.sleep(1)
        assert 3 <= sent <= 8  # after 20, 40, 80, 160, 320, 640 ms
        assert (await engine.ended("a", within=5)).output == 1_000_000
        await held.close()


async def test_no_step_begins_before_a_checkpoint_that_did_not_fit_into_the_tick_before_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zart.engine.batch.MAX_TICK_BYTES", 3_000)
    pending: list[int] = []

    @zart_step("sized-{name}")
    async def sized(name: str, size: int) -> str:
        await GATES["go"].wait()
        return "x" * size

    @zart_step("after")
    async def after() -> None:
        [turn] = engine.loops[0].turns.values()
        pending.append(len(turn.storing))

    @zart_durable("body")
    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_await(sized("a", 2_500)))
            group.create_task(_await(sized("b", 2_500)))
            group.create_task(_await(sized("c", 10)))
            await asyncio.sleep(0.05)
            GATES["go"].set()
            for _ in range(3):
                await asyncio.sleep(0)
            group.create_task(_await(after()))

    async with Engine(database, [body]) as engine:
        await engine.start("x", body)
        await engine.ended("x")
        assert pending == [0]


async def test_ten_thousand_gathered_handles_hear_of_their_ends_without_stopping_the_worker() -> None:
    loop, count = asyncio.get_running_loop(), 10_000
    turn: Any = SimpleNamespace(history=None)
    spec: Any = None
    family = Family(turn)
    for key in range(count):
        family.by_key[key] = Child(turn, spec, key, None)
        family.waits[loop.create_future()] = {key}
    began = time.perf_counter()
    family.hear({key: Checkpoint(Kind.CHILD, 1, "x", 1, None, None, None, 0) for key in range(count)})
    assert time.perf_counter() - began < 1
    assert family.known == count
    assert all(heard.done() for heard in family.waits)


# -- others


async def test_a_user_who_holds_a_parents_row_keeps_neither_its_children_nor_others_waiting_for_ever(
    database: Database,
) -> None:
    @zart_durable("parent")
    async def parent() -> int:
        return await zart.schedule(one(1)) + await zart.schedule(one(2))

    @zart_durable("other")
    async def other() -> int:
        return await zart.schedule(one(1))

    config = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=2, park_grace=0)
    async with Engine(database, [parent, other, one], config=config, workers=1) as engine:
        await engine.start("a", parent)
        held = await database.connect()
        async with held.transaction():
            await held.execute("select from zart.zart_queue for update")
            await engine.start("b", other)
            assert (await engine.ended("b")).output == 1
        assert (await engine.ended("a")).output == 3
        await held.close()


async def test_parent_and_child_whose_deadline_is_the_same_both_end(database: Database) -> None:
    @zart_durable("kid", timeout=0.3)
    async def kid() -> None:
        await GATES["never"].wait()

    @zart_durable("parent", timeout=0.3)
    async def parent() -> str:
        try:
            await kid()
        except StepFailed:
            return "told"
        return "never"

    async with Engine(database, [parent, kid], workers=2) as engine:
        for number in range(5):
            await engine.start(f"a{number}", parent)
        for number in range(5):
            await engine.ended(f"a{number}", within=5)
        await engine.all_ended(within=5)
        assert await live_children(engine) == 0


async def test_a_gather_of_handles_of_which_one_fails_cancels_the_others_with_the_parent(database: Database) -> None:
    @zart_step("fails")
    async def fails() -> None:
        raise ValueError("no")

    @zart_durable("parent")
    async def parent() -> None:
        await asyncio.gather(zart.schedule(gated("x")), zart.schedule(fails()))

    async with Engine(database, [parent, gated, fails], config=PARKED) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).status is ExecutionStatus.FAILED
        await engine.all_ended(within=5)
        assert RAN["ended x"] == 0
        assert await live_children(engine) == 0


async def test_a_child_that_postgresql_refuses_fails_its_parent_and_no_other_of_the_same_tick(
    database: Database,
) -> None:
    async def told(text: str, failure: zart.Failure) -> str:
        return f"{type(failure).__name__}: {await one(3)}"

    @zart_step("take-{text}")
    async def take(text: str) -> str:
        return text

    @zart_durable("parent", on_failure=told)
    async def parent(text: str) -> str:
        _ = zart.schedule(one(1))
        return await zart.schedule(take(text))

    async with Engine(database, [parent, take, one], workers=1) as engine:
        await engine.connection.execute(
            "alter table zart.zart_executions"
            " add constraint no_bad check (input::text not like '%bad%' or parent is null)"
        )
        names = ["a", "bad", "c", "d"]
        for name in names:
            await engine.start(name, parent, name)
        assert [(await engine.ended(name)).output for name in names] == ["a", "SerializationError: 3", "c", "d"]
        await engine.all_ended(within=5)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_user_who_cancels_a_child_in_an_open_transaction_keeps_nobody_else_waiting(
    database: Database, ending: str
) -> None:
    @zart_durable("parent")
    async def parent(name: str) -> str:
        try:
            return await zart.schedule(gated(name))
        except StepFailed:
            return "cancelled"

    async with Engine(database, [parent, gated], config=PARKED, workers=1) as engine:
        await engine.start("a", parent, "x")
        await eventually(lambda: RAN["began x"])
        held = await database.connect()
        transaction = held.transaction()
        await transaction.start()
        child = await held.fetchval("select execution_id from zart.zart_executions where parent is not null")
        cancelled = await held.fetch("select * from zart.zart_cancel_1($1, $2)", engine.bucket("a"), child)
        assert [row["what"] for row in cancelled] == ["cancelled"]
        GATES["x"].set()
        GATES["y"].set()
        await engine.start("b", parent, "y")
        assert (await engine.ended("b", within=5)).output == "y"
        await (transaction.commit() if ending == "commit" else transaction.rollback())
        assert (await engine.ended("a", within=5)).output == ("cancelled" if ending == "commit" else "x")
        await engine.all_ended(within=5)
        await held.close()


async def test_a_parent_that_fails_while_a_child_of_it_is_locked_leaves_no_orphan(database: Database) -> None:
    @zart_durable("kid")
    async def kid() -> None:
        await zart.schedule(gated("grandchild"))

    @zart_durable("parent")
    async def parent() -> None:
        _ = zart.schedule(kid())
        await GATES["fail"].wait()
        raise ValueError("no")

    async with Engine(database, [parent, kid, gated], config=PARKED) as engine:
        await engine.start("a", parent)
        await eventually(lambda: RAN["began grandchild"])
        held = await database.connect()
        async with held.transaction():
            await held.execute("select from zart.zart_queue q where id <> 1 for update")
            GATES["fail"].set()
            await engine.ended("a", within=5)
            await asyncio.sleep(0.2)
            assert await live_children(engine) == 2
        await engine.all_ended(within=5)
        assert await live_children(engine) == 0
        assert RAN["ended grandchild"] == 0
        await held.close()


async def test_counters_agree_when_a_childs_end_is_told_only_after_its_parent_has_been_retried(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word that a child has ended is kept back while its parent fails of it and begins anew."""
    deliver = journal.deliver_signals
    may_deliver = asyncio.Event()

    async def late(*place: Any) -> tuple[int, int]:
        if not may_deliver.is_set():
            return 0, 0
        return await deliver(*place)

    monkeypatch.setattr(journal, "deliver_signals", late)

    @zart_step("sometimes")
    async def sometimes() -> str:
        RAN["sometimes"] += 1
        if RAN["sometimes"] == 1:
            await GATES["first"].wait()
            raise ValueError("the first time")
        await GATES["second"].wait()
        return "at last"

    @zart_durable("parent", retry="fixed(1, 1ms)")
    async def parent() -> str:
        handle = zart.schedule(sometimes())
        await zart.wait_for_event("go", timeout="20s")
        return await handle

    async with Engine(database, [parent, sometimes], config=PARKED, workers=1) as engine:
        await engine.start("a", parent)
        held = await database.connect()
        await eventually(lambda: engine.connection.fetchval("select waiting from zart.zart_queue where id = 1"))
        transaction = held.transaction()
        await transaction.start()
        await held.execute("select from zart.zart_queue where id = 1 for update")
        GATES["first"].set()
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_signals where n > 0"))
        await transaction.rollback()
        await engine.offer("a", "go", None)
        await eventually(lambda: RAN["sometimes"] == 2)
        assert await engine.connection.fetchval("select done from zart.zart_queue where id = 1") == -1
        may_deliver.set()
        await asyncio.sleep(0.2)
        assert not (await engine.record("a")).status.is_terminal
        GATES["second"].set()
        assert (await engine.ended("a", within=5)).output == "at last"
        await held.close()


# -- faults between any two statements


@zart_step("once")
async def once() -> int:
    """Fails in its first run, whatever becomes of the worker."""
    RAN["once"] += 1
    if RAN["once"] == 1:
        raise ValueError("the first time")
    return 100


@zart_durable("twig")
async def twig(number: int) -> int:
    return await one(number) + await zart.schedule(one(number + 1))


async def _twigs_instead(_: zart.Failure) -> int:
    return await zart.schedule(one(7)) + await twig(50)


@zart_durable("tree", retry="fixed(1, 1ms)", on_failure=_twigs_instead)
async def tree() -> int:
    handles = [zart.schedule(one(number)) for number in range(3)]
    branch = zart.schedule(twig(30))
    total = sum(outcome.unwrap() for outcome in await zart.wait(handles))
    raise ValueError(f"{total + await branch + await zart.schedule(once())}")


@pytest.mark.parametrize("nth", range(2, 42, 4))
@pytest.mark.parametrize("fault", ["taken over before", "taken over after", "lost before", "lost after"])
async def test_a_fault_at_any_statement_of_a_worker_changes_no_result_and_leaves_nothing_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch, fault: str, nth: int
) -> None:
    count, fetch, tick = 0, asyncpg.Connection.fetch, statement("tick", database.schema)
    of_workers: set[Any] = set()

    async def fetch_or_fail(connection: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        if arguments[0] == tick:
            of_workers.add(connection)
        count += connection in of_workers
        if count != nth or connection not in of_workers:
            return await fetch(connection, *arguments, **options)
        if fault == "taken over before":
            await engine.take_over(engine.loops[0])
        if fault == "lost before":
            raise ConnectionResetError(fault)
        rows = await fetch(connection, *arguments, **options)
        if fault == "taken over after":
            await engine.take_over(engine.loops[0])
        if fault == "lost after":
            raise ConnectionResetError(fault)
        return rows

    async with Engine(database, [tree, twig, one, once], config=PARKED, workers=1) as engine:
        monkeypatch.setattr(asyncpg.Connection, "fetch", fetch_or_fail)
        await engine.start("a", tree)
        assert (await engine.ended("a")).output == 7 + 50 + 51
        await engine.all_ended(within=5)
        failures = await engine.connection.fetch("select error->>'message' from zart.zart_tasks where kind = 8")
        assert [row[0] for row in failures] == [str(0 + 1 + 2 + 30 + 31 + 100)]
        ended = await engine.connection.fetch("select status from zart.zart_executions where parent is not null")
        assert [row[0] for row in ended] == [1] * 9
        assert await engine.connection.fetchval("select count(*) from zart.zart_signals") == 0
        assert count >= nth
        assert not engine.tasks[0].done()
