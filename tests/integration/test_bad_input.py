"""Bad input works literally, or a clear error names it before anything is stored; the worker lives, others go on."""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import math
import os
import subprocess
import sys
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.junk import HUGE, NAMES, NO_COUNT, NO_DURATION, NO_NAME, Broken, check_text, shown
from zart import (
    EventAnswer,
    ExecutionNotFound,
    ExecutionStatus,
    PostgresScheduler,
    TaskRegistry,
    Worker,
    ZartError,
    zart_durable,
    zart_step,
)
from zart.cli.main import answer
from zart.terms import MAX_INPUT_BYTES

RAN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    async with PostgresScheduler.connect(database.dsn) as made:
        yield made


@zart_step("echo")
async def echo(value: Any) -> Any:
    return value


@zart_durable("echoes")
async def echoes(value: Any) -> Any:
    return await echo(value)


@zart_durable("takes-nothing")
async def takes_nothing() -> None: ...


Ask = Callable[[PostgresScheduler, Any], Awaitable[object]]


async def each_is_refused(scheduler: PostgresScheduler, ask: Ask, values: list[Any], *words: str) -> None:
    """Every value raises a clear error of zart's with all the words, and nothing is stored."""
    for value in values:
        with pytest.raises(ZartError) as caught:
            await ask(scheduler, value)
        check_text(caught.value, *words)
    assert not (await scheduler.list_executions()).items


# -- ids

WITH_ID: dict[str, Ask] = {
    "start": lambda s, id: s.start(id, "task"),
    "start_for": lambda s, id: s.start_for(echoes, id, 1),
    "start_and_wait_for": lambda s, id: s.start_and_wait_for(echoes, id, 1, timeout=0.1),
    "start_many": lambda s, id: s.start_many("task", [("good", 1), (id, 1)]),
    "status": lambda s, id: s.status(id),
    "history": lambda s, id: s.history(id),
    "wait": lambda s, id: s.wait(id),
    "wait_completion": lambda s, id: s.wait_completion(id, int),
    "wait_for": lambda s, id: s.wait_for(echoes, id),
    "cancel": lambda s, id: s.cancel(id),
    "offer_event": lambda s, id: s.offer_event(id, "go"),
}


@pytest.mark.parametrize("method", WITH_ID)
async def test_an_id_that_cannot_be_one_is_refused_by_every_method(scheduler: PostgresScheduler, method: str) -> None:
    await each_is_refused(scheduler, WITH_ID[method], [None, *NO_NAME], "execution_id")


async def test_a_parent_that_cannot_be_one_is_refused(scheduler: PostgresScheduler) -> None:
    await each_is_refused(scheduler, lambda s, id: s.list_executions(parent=id), NO_NAME, "parent")


async def test_every_other_text_is_the_id_of_one_execution_and_of_no_other(scheduler: PostgresScheduler) -> None:
    for number, name in enumerate(NAMES):
        assert (await scheduler.start(name, "task", number)).created
    for number, name in enumerate(NAMES):
        record = await scheduler.status(name)
        assert (record.execution_id, record.input) == (name, number)
        assert not (await scheduler.start(name, "task", -1)).created
    page = await scheduler.list_executions()
    assert [record.execution_id for record in page.items] == NAMES[::-1]
    many = await scheduler.start_many("task", [(name, -1) for name in NAMES])
    assert (many.created, sorted(many.existing)) == (0, sorted(NAMES))


@pytest.mark.parametrize("name", ["%", "a_", "x%", "é", "A", " a", "a", "a\\", "a'", 'a"', "a\n"], ids=shown)
async def test_an_id_finds_no_execution_that_is_only_like_it(scheduler: PostgresScheduler, name: str) -> None:
    for other in {"ab", "x1", unicodedata.normalize("NFD", name), name.swapcase(), f"{name} ", f" {name}"} - {name}:
        await scheduler.start(other, "task")
    for ask in (scheduler.status, scheduler.history, scheduler.cancel, scheduler.wait):
        with pytest.raises(ExecutionNotFound) as caught:
            await ask(name)
        check_text(caught.value, repr(name))
    with pytest.raises(ExecutionNotFound):
        await scheduler.offer_event(name, "go")


async def test_a_cancel_by_an_odd_id_cancels_that_execution_alone(scheduler: PostgresScheduler) -> None:
    await scheduler.start_many("task", [(name, None) for name in NAMES])
    for name in NAMES[::2]:
        assert await scheduler.cancel(name)
    page = await scheduler.list_executions(status="cancelled")
    assert {record.execution_id for record in page.items} == set(NAMES[::2])
    assert all(await asyncio.gather(*(scheduler.wait(name) for name in NAMES[::2])))


async def test_events_of_odd_names_are_kept_each_for_itself(scheduler: PostgresScheduler) -> None:
    await scheduler.start("a", "task")
    for number, name in enumerate(NAMES):
        assert await scheduler.offer_event("a", name, number) is EventAnswer.ACCEPTED
    assert {step.name: step.result for step in await scheduler.history("a")} == {
        name: number for number, name in enumerate(NAMES)
    }
    for name in NAMES:
        assert await scheduler.offer_event("a", name, -1) is EventAnswer.ALREADY_OFFERED


class Texts(enum.StrEnum):
    ID = "id of an enum"
    TASK = "echoes"
    STEP = "step of an enum"
    EVENT = "event of an enum"


async def test_members_of_a_str_enum_are_their_values_everywhere(
    database: Database, scheduler: PostgresScheduler
) -> None:
    @zart_step(Texts.STEP)
    async def step() -> int:
        return 1

    @zart_durable(Texts.TASK)
    async def durable() -> list[Any]:
        kept = await zart.capture(Texts.ID, lambda: 2)
        return [await step(), kept, await echo(3).named(Texts.TASK), await zart.wait_for_event(Texts.EVENT)]

    async with Engine(database, [durable]) as engine:
        handle = await scheduler.start(Texts.ID, Texts.TASK)
        await scheduler.offer_event(Texts.ID, Texts.EVENT, 4)
        assert (await engine.ended("id of an enum")).output == [1, 2, 3, 4]
    assert type(handle.execution_id) is str
    assert (await scheduler.wait(Texts.ID)).task_name == "echoes"
    assert await scheduler.cancel(Texts.ID) is False
    assert len(await scheduler.history(Texts.ID)) >= 4


# -- names, end to end


async def test_steps_of_odd_names_are_kept_and_replayed_each_for_itself(database: Database) -> None:
    held = asyncio.Event()

    @zart_step("hold")
    async def hold() -> None:
        RAN.append("hold")
        await held.wait()

    @zart_step("note")
    async def note(name: str) -> str:
        RAN.append(name)
        return name

    @zart_durable("notes")
    async def notes() -> list[str]:
        kept = [await note(name).named(name) for name in NAMES]
        await hold()
        return kept

    async with Engine(database, [notes]) as engine:
        await engine.start("n", notes)
        await eventually(lambda: RAN[-1:] == ["hold"])
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN.count("hold") == 2)
        held.set()
        assert (await engine.ended("n")).output == NAMES
        assert {step.name: step.result for step in await engine.history("n") if step.name != "hold"} == {
            name: name for name in NAMES
        }
    assert [name for name in RAN if name != "hold"] == NAMES


async def test_templates_filled_with_odd_texts_name_steps_literally(database: Database) -> None:
    @zart_step("note-{name}")
    async def note(name: str) -> str:
        return name

    short = [name for name in NAMES if len(name.encode()) < 500]

    @zart_durable("notes")
    async def notes() -> list[str]:
        return [await note(name) for name in short]

    async with Engine(database, [notes]) as engine:
        await engine.start("n", notes)
        assert (await engine.ended("n")).output == short
        assert [step.name for step in await engine.history("n")] == [f"note-{name}" for name in short]


async def test_captures_times_and_events_of_odd_names_work(database: Database, scheduler: PostgresScheduler) -> None:
    @zart_durable("captures")
    async def captures() -> list[int]:
        return [await zart.capture(name, functools.partial(int, number)) for number, name in enumerate(NAMES)]

    @zart_durable("times")
    async def times() -> int:
        return len({await zart.now(name) for name in NAMES[:5]} | {await zart.now(name) for name in NAMES[5:]})

    @zart_durable("sleeps")
    async def sleeps() -> None:
        for name in NAMES:
            await zart.sleep(name, 0)

    @zart_durable("listens")
    async def listens() -> list[int]:
        return [await zart.wait_for_event(name, int) for name in NAMES]

    async with Engine(database, [captures, times, sleeps, listens]) as engine:
        for durable in (captures, times, sleeps, listens):
            await engine.start(durable.task_name, durable)
        for number, name in enumerate(NAMES):
            await scheduler.offer_event("listens", name, number)
        assert (await engine.ended("captures")).output == list(range(len(NAMES)))
        assert (await engine.ended("times")).output > 1
        assert (await engine.ended("sleeps")).status == ExecutionStatus.COMPLETED
        assert (await engine.ended("listens")).output == list(range(len(NAMES)))


async def test_tasks_and_queues_of_odd_names_are_served_and_listed_each_for_itself(
    database: Database, scheduler: PostgresScheduler
) -> None:
    async def body(data: str) -> str:
        return data

    registry = TaskRegistry()
    for name in NAMES:
        registry.register(zart_durable(name, queue=name)(body))
    async with asyncio.TaskGroup() as group:
        worker = Worker(scheduler, registry, zart.WorkerConfig(queues=tuple(NAMES)))
        group.create_task(worker.run())
        for name in NAMES:
            await scheduler.start(name, name, name, queue=name)
        for name in NAMES:
            assert (await scheduler.wait(name, timeout="20s")).output == name
            for page in (await scheduler.list_executions(task_name=name), await scheduler.list_executions(queue=name)):
                assert [record.execution_id for record in page.items] == [name]
        worker.stop()


WITH_NAME: dict[str, tuple[Ask, str]] = {
    "task of start": (lambda s, name: s.start("a", name), "the name of the task"),
    "task of start_many": (lambda s, name: s.start_many(name, [("a", 1)]), "durable function"),
    "queue of start": (lambda s, name: s.start("a", "task", queue=name), "the name of the queue"),
    "queue of start_for": (lambda s, name: s.start_for(echoes, "a", 1, queue=name), "the name of the queue"),
    "queue of start_many": (lambda s, name: s.start_many("task", [("a", 1)], queue=name), "the name of the queue"),
    "event": (lambda s, name: s.offer_event("a", name), "the name of the event"),
    "task of list_executions": (lambda s, name: s.list_executions(task_name=name), "the name of the task"),
    "queue of list_executions": (lambda s, name: s.list_executions(queue=name), "the name of the queue"),
}


@pytest.mark.parametrize("place", WITH_NAME)
async def test_a_name_that_cannot_be_one_is_refused_by_every_method(scheduler: PostgresScheduler, place: str) -> None:
    ask, words = WITH_NAME[place]
    texts = [name for name in NO_NAME if isinstance(name, str)]
    if place == "task of start_many":
        await each_is_refused(scheduler, ask, texts, "the name of the task")
        await each_is_refused(scheduler, ask, [name for name in NO_NAME if name not in texts], words)
    else:
        await each_is_refused(scheduler, ask, NO_NAME, words)


IN_A_BODY: dict[str, tuple[Callable[[Any], Awaitable[object]], str]] = {
    "capture": (lambda name: zart.capture(name, lambda: 1), "the name of a captured value"),
    "now": (lambda name: zart.now(name), "the name of a moment"),
    "sleep": (lambda name: zart.sleep(name, 0), "the name of a sleep"),
    "sleep_until": (lambda name: zart.sleep_until(name, datetime.now().astimezone()), "the name of a sleep"),
    "wait_for_event": (lambda name: zart.wait_for_event(name), "the name of an event"),
    "function of capture": (lambda function: zart.capture("x", function), "capture('x') takes a plain function"),
    "duration of sleep": (lambda duration: zart.sleep("x", duration), "the duration of sleep 'x'"),
    "timeout of wait_for_event": (lambda timeout: zart.wait_for_event("x", timeout=timeout), "the timeout of event"),
    "moment of sleep_until": (lambda moment: zart.sleep_until("x", moment), "sleep_until('x')"),
}  # fmt: skip

NO_VALUE: dict[str, list[Any]] = {
    "function of capture": [None, 0, "x", echo.function, Broken(), HUGE],
    "duration of sleep": [None, *NO_DURATION],
    "timeout of wait_for_event": NO_DURATION,
    "moment of sleep_until": [None, 0, "2030-01-01", 1e300, timedelta(1), datetime(2030, 1, 1), HUGE, Broken()],
}


@pytest.mark.parametrize("place", IN_A_BODY)
async def test_what_cannot_be_used_in_a_body_is_refused_and_leaves_nothing_in_the_journal(
    database: Database, place: str
) -> None:
    say, words = IN_A_BODY[place]
    texts: list[str] = []

    @zart_durable("says")
    async def says() -> None:
        for value in NO_VALUE.get(place, [None, *NO_NAME]):
            with pytest.raises(ZartError) as caught:
                await say(value)
            check_text(caught.value, words)
            texts.append(str(caught.value))

    async with Engine(database, [says, echoes]) as engine:
        await engine.start("s", says)
        record = await engine.ended("s")
        assert record.status == ExecutionStatus.COMPLETED, record.error
        assert await engine.history("s") == []
        await engine.start("another", echoes, 7)
        assert (await engine.ended("another")).output == 7
    assert texts


# -- numbers, durations, times


WITH_DURATION: dict[str, tuple[Ask, str]] = {
    "delay of start": (lambda s, delay: s.start("a", "task", delay=delay), "delay"),
    "delay of start_for": (lambda s, delay: s.start_for(echoes, "a", 1, delay=delay), "delay"),
    "delay of start_many": (lambda s, delay: s.start_many("task", [("a", 1)], delay=delay), "delay"),
    "timeout of wait": (lambda s, timeout: s.wait("a", timeout=timeout), "timeout"),
    "timeout of wait_completion": (lambda s, timeout: s.wait_completion("a", int, timeout=timeout), "timeout"),
    "timeout of wait_for": (lambda s, timeout: s.wait_for(echoes, "a", timeout=timeout), "timeout"),
    "timeout of start_and_wait_for": (
        lambda s, timeout: s.start_and_wait_for(echoes, "a", 1, timeout=timeout),
        "timeout",
    ),
}


@pytest.mark.parametrize("place", WITH_DURATION)
async def test_what_is_no_duration_is_refused_by_every_method(scheduler: PostgresScheduler, place: str) -> None:
    ask, word = WITH_DURATION[place]
    await each_is_refused(scheduler, ask, NO_DURATION, word)


WITH_NUMBER: dict[str, tuple[Ask, str]] = {
    "priority of start": (lambda s, number: s.start("a", "task", priority=number), "priority"),
    "priority of start_for": (lambda s, number: s.start_for(echoes, "a", 1, priority=number), "priority"),
    "priority of start_many": (lambda s, number: s.start_many("task", [("a", 1)], priority=number), "priority"),
    "limit": (lambda s, number: s.list_executions(limit=number), "limit"),
    "buckets": (lambda s, number: s.migrate(buckets=number), "buckets"),
}


@pytest.mark.parametrize("place", WITH_NUMBER)
async def test_what_is_no_number_is_refused_by_every_method(scheduler: PostgresScheduler, place: str) -> None:
    ask, word = WITH_NUMBER[place]
    await each_is_refused(scheduler, ask, NO_COUNT, word)


FILTERS: dict[str, list[Any]] = {
    "status": ["", "lost", "COMPLETED", "x" * 10_000, "\0", "\ud800", 1, b"failed", [], HUGE, Broken()],
    "created_after": [0, "2030-01-01", datetime(2030, 1, 1), datetime.max.date(), HUGE, Broken()],
    "created_before": [0, math.nan, "now", datetime(2030, 1, 1), HUGE, Broken()],
    "after": ["", "-1", "x", "1.5", "9" * 19, "9" * 10_000, "\u0661", "\0", 1, b"1", HUGE, Broken()],
}


@pytest.mark.parametrize("name", FILTERS)
async def test_a_filter_that_cannot_be_one_is_refused(scheduler: PostgresScheduler, name: str) -> None:
    await each_is_refused(scheduler, lambda s, value: s.list_executions(**{name: value}), FILTERS[name], name)


async def test_what_is_no_durable_function_is_refused_by_every_method(scheduler: PostgresScheduler) -> None:
    given: list[Any] = [None, 0, echoes.function, type(echoes), echo, HUGE, Broken()]
    for ask in (
        lambda s, durable: s.start_for(durable, "a", 1),
        lambda s, durable: s.start_many(durable, [("a", 1)]),
        lambda s, durable: s.start_and_wait_for(durable, "a", 1),
        lambda s, durable: s.wait_for(durable, "a"),
    ):
        await each_is_refused(scheduler, ask, given, "@zart_durable function")


async def test_what_is_no_type_is_refused_by_wait_completion(scheduler: PostgresScheduler) -> None:
    await each_is_refused(scheduler, lambda s, it: s.wait_completion("a", it), [7, "Nope", [], 1.5], "result of")


@pytest.mark.parametrize("conn", [0, "postgresql://x", object(), HUGE, Broken()], ids=shown)
async def test_what_is_no_connection_is_refused_by_every_method(scheduler: PostgresScheduler, conn: Any) -> None:
    for ask in (
        lambda: scheduler.start("a", "task", conn=conn),
        lambda: scheduler.start_for(echoes, "a", 1, conn=conn),
        lambda: scheduler.start_many("task", [("a", 1)], conn=conn),
        lambda: scheduler.cancel("a", conn=conn),
        lambda: scheduler.offer_event("a", "go", conn=conn),
    ):
        await each_is_refused(scheduler, lambda _, __, ask=ask: ask(), [None], "conn must be")  # type: ignore[misc]


CONNECTING: dict[str, list[Any]] = {
    "dsn": [7, b"postgresql://x", ["x"], Broken(), HUGE],
    "schema": [None, 7, b"zart", "", "x" * 64, "é" * 32, "a\0b", "\ud800", "a$b", "a:b", "a\nb", HUGE, Broken()],
    "min_pool_size": [None, -1, 11, 1.5, True, "1", math.nan, HUGE, Broken()],
    "max_pool_size": [None, 0, -1, 1.5, True, "1", math.inf, 10**6, HUGE, Broken()],
}


@pytest.mark.parametrize("name", CONNECTING)
async def test_what_cannot_be_connected_with_is_refused(database: Database, name: str) -> None:
    for value in CONNECTING[name]:
        options = {"dsn": database.dsn, name: value}
        with pytest.raises(ZartError) as caught:
            await PostgresScheduler.connect(**options)
        check_text(caught.value, name)


SCHEMAS = ["%", "it's", 'say "hi"', "Żart", "😀", "a b", "select", "x" * 63, "back\\slash"]


@pytest.mark.parametrize("schema", SCHEMAS, ids=shown)
async def test_any_other_text_is_a_schema(empty_database: Database, schema: str) -> None:
    async with PostgresScheduler.connect(empty_database.dsn, schema=schema) as scheduler:
        await scheduler.migrate()
        await scheduler.start("a", "echoes", 1)
        registry = TaskRegistry()
        registry.register(echoes)
        worker = Worker(scheduler, registry)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            assert await scheduler.wait_completion("a", int, timeout="20s") == 1
            worker.stop()


# -- waits whose time is up at once


async def test_a_wait_without_time_finds_what_has_ended(database: Database, scheduler: PostgresScheduler) -> None:
    await scheduler.start("a", "task")
    await scheduler.cancel("a")
    assert (await scheduler.wait("a", timeout=0)).status is ExecutionStatus.CANCELLED
    with pytest.raises(zart.ExecutionCancelled):
        await scheduler.wait_completion("a", int, timeout=0)


async def test_a_wait_without_time_for_an_unknown_id_says_so(scheduler: PostgresScheduler) -> None:
    with pytest.raises(ExecutionNotFound):
        await scheduler.wait("nobody", timeout=0)


# -- data


async def test_data_for_a_function_that_takes_none_is_refused(scheduler: PostgresScheduler) -> None:
    ask: Ask = lambda s, data: s.start_for(takes_nothing, "a", data)  # noqa: E731
    await each_is_refused(scheduler, ask, [0, "", [], HUGE, Broken()], "input of execution 'a'", "takes no data")


@pytest.mark.parametrize(
    "data",
    [math.nan, math.inf, -math.inf, HUGE, 2**64, "\0", "\ud800", b"\0", {1: 2}, {"\0": 1}, object(), {1, 2}, Broken()],
    ids=shown,
)
async def test_data_that_would_not_come_back_is_refused(scheduler: PostgresScheduler, data: Any) -> None:
    if data == b"\0":
        data = [data]  # at the top, bytes are kept
    for ask, where in (
        (lambda s, it: s.start("a", "task", it), "input of execution 'a'"),
        (lambda s, it: s.start_many("task", [("good", 1), ("a", it)]), "input of execution 'a'"),
        (lambda s, it: s.offer_event("a", "go", it), "payload of event 'go' of execution 'a'"),
    ):
        await each_is_refused(scheduler, ask, [data, {"deep": [data]}], where)


async def test_data_over_the_limit_is_refused_with_its_size(scheduler: PostgresScheduler) -> None:
    data = "x" * MAX_INPUT_BYTES
    size = f"{MAX_INPUT_BYTES + 2:,} bytes"
    await each_is_refused(scheduler, lambda s, it: s.start("a", "task", it), [data], "input of execution 'a'", size)
    await each_is_refused(scheduler, lambda s, it: s.offer_event("a", "go", it), [data], "payload of event 'go'", size)


# -- the command line


def zart_(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = answer(arguments)
    return code, *capsys.readouterr()


BAD_TEXTS = ["", "x" * 10_000, "half \udcff", "é" * 300]
BAD_NUMBERS = ["", "-1", "1.5", "nan", "inf", "1e3", "x" * 10_000, "9" * 5_000, "\udcff"]
BAD_DURATIONS = ["", "-1s", "nan", "inf", "1e3", "soon", "x" * 10_000, "9" * 5_000, "\udcff"]
COMMANDS: dict[str, list[str]] = {
    "status {}": BAD_TEXTS,
    "history {}": BAD_TEXTS,
    "wait {}": BAD_TEXTS,
    "cancel {}": BAD_TEXTS,
    "event {} go": BAD_TEXTS,
    "event a {}": BAD_TEXTS,
    "event a go --data={}": ["", "{", "NaN", "9" * 5_000, "9" * 30, '"\\u0000"', '"\\ud800"', "[" * 100_000, "\udcff"],
    "start {}": BAD_TEXTS,
    "start task --id={}": [*BAD_TEXTS, "zart:1"],
    "start task --queue={}": BAD_TEXTS,
    "start task --priority={}": BAD_NUMBERS,
    "start task --delay={}": BAD_DURATIONS,
    "start task --data={}": ["", "{", "NaN", "9" * 5_000, "9" * 30, '"\\u0000"', '"\\ud800"', "[" * 100_000, "\udcff"],
    "list --task={}": BAD_TEXTS,
    "list --queue={}": BAD_TEXTS,
    "list --status={}": BAD_TEXTS,
    "list --limit={}": [*BAD_NUMBERS, "0", "10001"],
    "list --after={}": [*BAD_NUMBERS, "9" * 19],
    "list --schema={}": ["", "x" * 64, "a$b", "\udcff"],
    "wait a --timeout={}": BAD_DURATIONS,
    "migrate --buckets={}": [*BAD_NUMBERS, "0", "1025"],
    "migrate --schema={}": ["", "x" * 64, "a$b", "\udcff"],
    "migrate --sql --schema={}": ["", "x" * 64, "a$b", "\udcff"],
    "demo --procs={}": [*BAD_NUMBERS, "0", "100000000"],
    "demo --executions={}": [*BAD_NUMBERS, "0", "100000000"],
    "{}": ["x" * 10_000, "\udcff", "sta%tus"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_refuses_in_one_line(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    for bad in COMMANDS[command]:
        code, out, err = zart_(capsys, *(word.replace("{}", bad) for word in command.split()))
        line = err.removesuffix("\n")
        assert (code, out) == (2, ""), (bad[:50], out)
        assert line, bad[:50]
        assert "\n" not in line
        assert len(line) < 1_500
    assert json.loads(zart_(capsys, "list", "--json")[1])["items"] == []


ODD = ["%", "_", "it's", 'say "hi"', "back\\slash", "$1", "-", "a\nb", "\x1b[31mred", "é😀", "שלום", "x" * 512]


def test_the_command_line_takes_every_other_text_literally(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    for name in ODD:
        assert zart_(capsys, "start", name, f"--id={name}", f"--queue={name}", f"--data={json.dumps(name)}")[0] == 0
    for name in ODD:
        code, out, _ = zart_(capsys, "status", "--json", name)
        found = json.loads(out)
        assert code == 0
        assert {found[field] for field in ("execution_id", "task_name", "queue", "input")} == {name}
        for option in (f"--task={name}", f"--queue={name}"):
            items = json.loads(zart_(capsys, "list", "--json", option)[1])["items"]
            assert [item["execution_id"] for item in items] == [name]
        assert zart_(capsys, "event", name, name)[0] == 0
        assert [step["name"] for step in json.loads(zart_(capsys, "history", "--json", name)[1])] == [name]
        code, out, _ = zart_(capsys, "cancel", name)
        assert code == 0
        assert "\x1b" not in out
        assert out.count("\n") == 1


def test_the_command_line_prints_what_its_terminal_cannot_show(database: Database) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", "from zart.cli.main import main; main()", *arguments],
            env={**os.environ, "DATABASE_URL": database.dsn, "PYTHONIOENCODING": "ascii"},
            capture_output=True, check=False,
        )  # fmt: skip

    started, listed = run("start", "täsk", "--id", "é😀"), run("list")
    told, refused = run("status", "é😀", "--json"), run("status", "ü")
    assert (started.returncode, started.stdout, started.stderr) == (0, b"started \\xe9\\U0001f600\n", b"")
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert b"t\\xe4sk" in listed.stdout
    assert json.loads(told.stdout.decode())["execution_id"] == "é😀"
    assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (2, b"", 1)


# -- what is stored by others


async def test_an_input_that_is_no_json_of_ours_fails_that_execution_only(
    database: Database, scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    """Somebody wrote into the tables by hand: what PostgreSQL takes for json, Python need not."""
    await scheduler.start_for(echoes, "good", 1)
    for number, text in enumerate(['"\\ud800"', '"\\u0000"', "1e999", "9" * 30, "[" * 900 + "]" * 900]):
        await scheduler.start_for(echoes, f"bad{number}", 1)
        await connection.execute(
            "update zart.zart_executions set input = $2::text::json where execution_id = $1", f"bad{number}", text
        )
    async with Engine(database, [echoes]) as engine:
        assert (await engine.ended("good")).output == 1
        for number in range(5):
            assert (await engine.ended(f"bad{number}")).status.is_terminal
