"""A worker whose link ends at any of its statements: before the server hears it, before its answer is heard, silently.

The same executions are run for each statement, by a worker of their own that meets the fault once. What comes of them
is what comes of them without a fault, and no step is run twice whose result was kept.

With `ZART_TEST_EVERY_STATEMENT=1`, statements that are sent all the time meet the fault at several times.
"""

from __future__ import annotations

import asyncio
import collections
import os
import re
from dataclasses import dataclass
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.wire import Fate, Wire
from zart import PostgresScheduler, WorkerConfig, zart_durable, zart_step
from zart.engine import session, supervisor, transactions
from zart.postgres import lending

RAN: collections.Counter[tuple[str, str]] = collections.Counter()
AT_ONCE = 16
ALL = bool(os.environ.get("ZART_TEST_EVERY_STATEMENT"))


def _run(step: str) -> None:
    RAN[zart.context().execution_id.partition("/")[0], step] += 1


@zart_step("leaf-{n}")
async def leaf(n: int) -> int:
    return n


@zart_step("counted-{n}")
async def counted(n: int) -> int:
    _run(f"counted-{n}")
    return n


@zart_step("flaky", retry="fixed(2, 10ms)")
async def flaky() -> int:
    _run("flaky")
    if zart.context().current_attempt == 0:
        raise ConnectionError("the first time")
    return 2


@zart_step("written")
async def written() -> int:
    conn = await zart.trx()
    await conn.execute("insert into written values ($1)", zart.context().execution_id)
    return 3


async def _repair(failure: zart.Failure) -> list[Any]:
    return [await counted(9), type(failure).__name__]


@zart_durable("everything", retry="fixed(1, 10ms)", on_failure=_repair)
async def everything() -> list[Any]:
    """Every kind of checkpoint, every verb."""
    first = [await counted(1), await flaky(), await written(), (await zart.now("now")).tzinfo is not None]
    handles = [zart.schedule(leaf(n)) for n in (4, 5)]
    second = [outcome.unwrap() for outcome in await zart.wait(handles)]
    await zart.sleep("nap", "20ms")
    told = await zart.wait_for_event("told", int, timeout="1h")
    try:
        await zart.wait_for_event("untold", int, timeout="20ms")
    except zart.EventTimeout:
        raise ValueError([first, second, told]) from None
    return []


@dataclass(frozen=True)
class Place:
    """The statement at which a link ends: its name, and the how manieth execution of it."""

    name: str
    number: int
    fate: Fate


def _name(text: str) -> str:
    """A statement's name: that of its file, or its first word."""
    found = re.match(r"-- (\w+):", text)
    return found[1] if found else text.split()[0].lower()


class At:
    """The fates of statements, of which one is told a fault."""

    def __init__(self, place: Place | None) -> None:
        self._place = place
        self.seen: collections.Counter[str] = collections.Counter()

    def __call__(self, text: str) -> Fate:
        name = _name(text)
        self.seen[name] += 1
        if self._place is not None and (name, self.seen[name]) == (self._place.name, self._place.number):
            return self._place.fate
        return Fate.PASS


@dataclass(frozen=True)
class _Elsewhere:
    dsn: str
    schema: str


async def _outcome(database: Database, queue: str, place: Place | None) -> tuple[Any, At, bool]:
    """What becomes of the executions of one queue, the statements of its worker, and whether it met the fault."""
    at = At(place)
    registry = zart.TaskRegistry()
    for one in (everything, leaf):
        registry.register(one)
    config = WorkerConfig(queues=(queue,), park_grace=0, lease_timeout="6s", max_concurrent_tasks=4)
    name = f"{queue}-a"
    async with Wire(database, at) as wire, PostgresScheduler.connect(database.dsn) as scheduler:
        worker = zart.Worker(_Elsewhere(wire.database.dsn, database.schema), registry, config)
        running = asyncio.create_task(worker.run())
        await scheduler.start_for(everything, name, queue=queue)
        await scheduler.offer_event(name, "told", 7)
        record = await scheduler.wait(name, timeout="60s")
        history = sorted(
            (step.name, step.kind, step.status, str(step.result), step.attempts)
            for step in await scheduler.history(name)
            if step.name != "now"
        )
        children = (await scheduler.list_executions(parent=name)).items
        worker.stop()
        await running
    kept = [(child.task_name, child.status, child.output, child.crashes) for child in children]
    ran = {step: count for (of, step), count in RAN.items() if of == name}
    what = (record.status, record.output, record.attempt, record.crashes, history, sorted(map(str, kept)), ran)
    return what, at, bool(wire.cut or wire.silenced)


def _places(seen: collections.Counter[str]) -> list[Place]:
    """Each of the ticks, and every other statement at its first execution, or at its first three; by default it is not
    every tick that is not heard.

    The step's own statement does not fall silent: that may take as long as the step's timeout allows. (Where a network
    is silent, and not a proxy, the kernel ends it.)
    """
    numbers = {name: count if name == "tick" else min(count, 3 if ALL else 1) for name, count in seen.items()}
    at = [(name, number + 1) for name, most in sorted(numbers.items()) for number in range(most)]
    places = [Place(*one, fate) for one in at for fate in (Fate.CUT_BEFORE, Fate.CUT_AFTER, Fate.SILENT)]
    places = [place for place in places if (place.name, place.fate) != ("insert", Fate.SILENT)]
    return [place for place in places if ALL or place.fate is Fate.CUT_AFTER or place.number % 3 == 1]


async def test_wherever_a_link_ends_the_outcome_is_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (session, supervisor):
        monkeypatch.setattr(module, "STATEMENT_TIMEOUT", 0.7)
        monkeypatch.setattr(module, "RECONNECT_TIMEOUT", 1.0)
    for name in ("FENCE_DEADLINE", "COMMIT_DEADLINE", "DEADLINE"):
        monkeypatch.setattr(transactions, name, 1.0)
    monkeypatch.setattr(lending, "DEADLINE", 1.0)
    connection = await database.connect()
    await connection.execute("create table written(execution_id text primary key)")
    without, at, met = await _outcome(database, "q", None)
    assert not met
    assert {"tick", "reregister", "add_lanes", "trx", "commit", "load_journal"} <= at.seen.keys()
    room, missed = asyncio.Semaphore(AT_ONCE), list[Place]()

    async def one(number: int, place: Place) -> None:
        async with room:
            try:
                what, _, met = await _outcome(database, f"q{number}", place)
            except zart.ZartError as error:
                raise AssertionError(place) from error
            assert what == without, place
            if not met:
                missed.append(place)

    places = _places(at.seen)
    print(dict(at.seen))
    async with asyncio.TaskGroup() as group:
        for number, place in enumerate(places):
            group.create_task(one(number, place))
    print(f"{len(places)} places, not met: {missed}")
    assert len(missed) < len(places) / 4
    rows = await connection.fetchval("select count(*) from written")
    assert rows == len(places) + 1
    await connection.close()
