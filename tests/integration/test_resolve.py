"""Ticks and reads whose answer is lost, refused or never comes: nothing claimed or stored is lost with it."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.engine import Engine, refuse_results_like
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from zart import PostgresScheduler, WorkerConfig, zart_durable, zart_step
from zart.codec import bucket_of
from zart.engine import session
from zart.engine.batch import Batch
from zart.engine.ticker import TickAnswer, Ticker
from zart.meters import RECONNECTS
from zart.model import ExecutionStatus, Verb
from zart.store import queue

RAN: collections.Counter[str] = collections.Counter()
HAPPENED: collections.Counter[str] = collections.Counter()
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

CONFIG = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=4)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    HAPPENED.clear()
    GATES.clear()


@zart_step("gated")
async def gated() -> int:
    RAN["gated"] += 1
    await GATES["gated"].wait()
    return 1


@zart_durable("waits-at-gate")
async def waits_at_gate() -> int:
    return await gated()


@zart_durable("two")
async def two() -> int:
    return 2


def _cancelled_statement() -> asyncpg.QueryCanceledError:
    return asyncpg.QueryCanceledError("canceling statement due to statement timeout")


# -- lost ticks and refused reads


async def test_a_read_cancelled_while_a_lost_tick_is_resolved_loses_no_checkpoint(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, read_checkpoints = Ticker.send, queue.read_checkpoints

    async def send_into_a_cut(ticker: Ticker, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
        if batch.checkpoints and not HAPPENED["cut"]:
            HAPPENED["cut"] += await engine.cut_connections()
        return await send(ticker, batch, lanes, limit)

    async def read_cancelled(*arguments: Any) -> Any:
        HAPPENED["reads"] += 1
        if HAPPENED["reads"] == 1:
            raise _cancelled_statement()
        return await read_checkpoints(*arguments)

    monkeypatch.setattr(Ticker, "send", send_into_a_cut)
    monkeypatch.setattr(queue, "read_checkpoints", read_cancelled)
    async with Engine(database, [waits_at_gate], config=CONFIG) as engine:
        await engine.start("a", waits_at_gate)
        GATES["gated"].set()
        record = await engine.ended("a", within=5)
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, 1)
        assert HAPPENED["cut"] == 1
        assert HAPPENED["reads"] >= 2
        assert RAN["gated"] == 1


async def test_a_read_refused_after_a_tick_has_committed_loses_none_of_its_claims(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tick that ends `a`, whose row is locked, claims `b`; the read of what became of `a` is cancelled."""
    send, still_held = Ticker.send, queue.still_held
    user = await database.connect()
    lock = user.transaction()
    of_a = bucket_of("a", database.buckets)
    beside = next(name for n in range(100) if bucket_of(name := f"b{n}", database.buckets) == of_a)

    async def send_a_claim_along(ticker: Ticker, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
        if HAPPENED["claimed"] or not any(row.verb == Verb.FINISH for row in batch.verbs):
            return await send(ticker, batch, lanes, limit)
        await lock.start()
        await user.execute("select from zart.zart_queue for update")
        await engine.start(beside, two)
        answer = await send(ticker, batch, list(engine.lanes.values()), 1)
        HAPPENED["claimed"] += len(answer.claims)
        return answer

    async def read_cancelled(*arguments: Any) -> Any:
        if HAPPENED["claimed"] and not HAPPENED["refused"]:
            HAPPENED["refused"] += 1
            await lock.rollback()
            raise _cancelled_statement()
        return await still_held(*arguments)

    monkeypatch.setattr(Ticker, "send", send_a_claim_along)
    monkeypatch.setattr(queue, "still_held", read_cancelled)
    async with Engine(database, [waits_at_gate, two], config=CONFIG) as engine:
        await engine.start("a", waits_at_gate)
        GATES["gated"].set()
        await eventually(lambda: HAPPENED["refused"])
        await engine.all_ended(within=5)
        assert HAPPENED == {"claimed": 1, "refused": 1}
        assert [(await engine.record(name)).output for name in ("a", beside)] == [1, 2]
    await user.close()


@pytest.mark.parametrize("statement", ["lanes_served", "load_claims", "look"], ids=["lanes", "load", "look"])
async def test_a_statement_cancelled_between_ticks_does_not_end_the_worker(
    database: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    send_statement = getattr(queue, statement)

    async def cancelled_once(*arguments: Any) -> Any:
        HAPPENED["sent"] += 1
        if HAPPENED["sent"] == 1:
            raise _cancelled_statement()
        return await send_statement(*arguments)

    monkeypatch.setattr(queue, statement, cancelled_once)
    async with Engine(database, [waits_at_gate], config=CONFIG) as engine:
        await engine.start("a", waits_at_gate)
        await eventually(lambda: HAPPENED["sent"] >= 2)
        GATES["gated"].set()
        assert (await engine.ended("a", within=5)).output == 1
        assert RAN["gated"] == 1


async def _cut_and_made_again(engine: Engine) -> None:
    words = engine.loops[0].place.words
    before = words[RECONNECTS]
    assert await engine.cut_connections() == 1
    await eventually(lambda: words[RECONNECTS] > before)


async def test_a_refused_value_fails_only_its_own_execution_while_links_are_cut(database: Database) -> None:
    @zart_step("say")
    async def say(word: str) -> str:
        return word

    @zart_durable("says")
    async def says(word: str) -> str:
        return await say(word)

    words = {f"s{n}": "poison" if n % 7 == 0 else "good" for n in range(30)}
    async with Engine(database, [says], config=WorkerConfig(lease_timeout="1h", max_concurrent_tasks=64)) as engine:
        await refuse_results_like(engine.connection, "poison")
        await eventually(lambda: engine.loops[0].place.ready)
        for number, (name, word) in enumerate(words.items()):
            await engine.start(name, says, word)
            if number % 10 == 5:
                await _cut_and_made_again(engine)
        await engine.all_ended(within=20)
        failed = {name for name in words if (await engine.record(name)).status == ExecutionStatus.FAILED}
        assert failed == {name for name, word in words.items() if word == "poison"}


# -- silent links


@pytest.mark.parametrize(
    "text",
    ["zart_tick_1", "zart_load_claims_1", "zart_look_1"],
    ids=["tick", "load", "look"],
)
async def test_a_link_that_falls_silent_is_given_up_and_made_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(session, "STATEMENT_TIMEOUT", 0.5)
    config = WorkerConfig(lease_timeout="1s", max_concurrent_tasks=4)
    async with Proxy(database) as proxy:
        proxy.silence_next(text)
        async with Engine(proxy.database, [waits_at_gate], config=config) as engine:
            await engine.start("a", waits_at_gate)
            await eventually(lambda: proxy.silenced)
            GATES["gated"].set()
            record = await engine.ended("a", within=8)
            assert (record.status, record.output) == (ExecutionStatus.COMPLETED, 1)
            assert engine.loops[0].place.words[RECONNECTS] == proxy.silenced == 1


# -- claims set apart


async def _start_apart(database: Database, execution_id: str, *, crashes: int) -> None:
    """Start an execution and set it apart, as if it had been running when its process died, so many times."""
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start_for(waits_at_gate, execution_id)
    connection = await database.connect()
    await connection.execute("update zart.zart_queue set lane = -lane, crashes = $1", crashes)
    await connection.close()


@pytest.fixture
def answer_of_the_claim_apart_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tick that claims something set apart is committed, and its answer does not come."""
    send = Ticker.send

    async def send_and_lose(ticker: Ticker, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
        answer = await send(ticker, batch, lanes, limit)
        if answer.claims and lanes[0] < 0 and not HAPPENED["lost"]:
            HAPPENED["lost"] += 1
            raise ConnectionResetError
        return answer

    monkeypatch.setattr(Ticker, "send", send_and_lose)


@pytest.mark.usefixtures("answer_of_the_claim_apart_is_lost")
async def test_what_has_killed_too_often_is_quarantined_also_when_the_answer_of_its_claim_was_lost(
    database: Database,
) -> None:
    await _start_apart(database, "poison", crashes=9)
    async with Engine(database, [waits_at_gate], config=CONFIG) as engine:
        record = await engine.ended("poison", within=5)
        assert record.status == ExecutionStatus.QUARANTINED
        assert (HAPPENED["lost"], RAN["gated"]) == (1, 0)


@pytest.mark.usefixtures("answer_of_the_claim_apart_is_lost")
async def test_what_was_set_apart_runs_alone_also_when_the_answer_of_its_claim_was_lost(database: Database) -> None:
    await _start_apart(database, "suspect", crashes=1)
    async with Engine(database, [waits_at_gate, two], config=CONFIG) as engine:
        await eventually(lambda: RAN["gated"])
        await engine.start("innocent", two)
        beats = engine.loops[0].place.loop_count
        await eventually(lambda: engine.loops[0].place.loop_count >= beats + 3)
        assert len(engine.loops[0].turns) == HAPPENED["lost"] == 1
        assert (await engine.record("innocent")).status == ExecutionStatus.PENDING
        GATES["gated"].set()
        assert [(await engine.ended(name)).output for name in ("suspect", "innocent")] == [1, 2]
