"""`trx()` when things go wrong: misuse, contention, lost answers, zombies. One sentence each."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from zart import WorkerConfig, zart_durable, zart_step
from zart.codec import step_key
from zart.engine import transactions
from zart.errors import NotInStep, StepFailed, TransactionMisused
from zart.meters import CLAIMS_LOST
from zart.model import ExecutionStatus, KeySpace
from zart.store.transactions import trx

RAN: collections.Counter[str] = collections.Counter()
SEEN: dict[str, Any] = {}
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

COMMIT = "commit\0"

CUT_WORKERS = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'zart worker'"
    " and datname = current_database()"
)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    SEEN.clear()
    GATES.clear()


@pytest_asyncio.fixture(autouse=True)
async def _tables(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "create table notes(text text); create table counters(id int primary key, n int);"
        " insert into counters values (1, 0), (2, 0);"
        " create table owned(id int references counters deferrable initially deferred)"
    )


async def note(text: str) -> Any:
    """Write a note in the step's transaction."""
    conn = await zart.trx()
    await conn.execute("insert into notes values ($1)", text)
    return conn


async def notes(connection: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await connection.fetch("select text from notes order by text")]


@zart_step("write")
async def write() -> int:
    """Writes a note, waits for the gate "go" if its number is in SEEN, and gives the number of times it has run."""
    RAN["write"] += 1
    number = RAN["write"]
    await note(f"try {number}")
    if SEEN.get("gated", 0) >= number:
        await GATES["go"].wait()
    return number


@zart_durable("body")
async def body() -> int:
    return await write()


async def error_of(database: Database, step: Any) -> str:
    """What the body hears of a step that fails in its only try."""

    @zart_durable("failing")
    async def failing() -> str:
        try:
            return f"value {await step()}"
        except StepFailed as error:
            return str(error)

    async with Engine(database, [failing]) as engine:
        await engine.start("e", failing)
        record = await engine.ended("e")
        SEEN["history"] = await engine.history("e")
    assert record.status == ExecutionStatus.COMPLETED, record.error
    return str(record.output)


# -- misuse


@pytest.mark.parametrize(
    "text",
    ["commit", "rollback", "commit; begin", "rollback; begin", "commit and chain", "rollback and chain", "abort"],
)
async def test_a_transaction_that_is_ended_by_hand_fails_the_step_and_nothing_is_recorded_as_done(
    text: str, database: Database
) -> None:
    @zart_step("write", retry="fixed(3, 10ms)")
    async def ended_by_hand() -> int:
        RAN["write"] += 1
        conn = await note("a")
        await conn.execute(text)
        return 1

    said = await error_of(database, ended_by_hand)
    assert TransactionMisused.__qualname__ in said
    assert "step 'write' has committed or rolled back by hand" in said
    assert RAN == {"write": 1}
    assert [step.status for step in SEEN["history"]] == ["failed"]


@pytest.mark.parametrize("way", ["close", "terminate"])
async def test_a_connection_that_is_closed_by_hand_fails_the_step(
    way: str, database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write", retry="fixed(3, 10ms)")
    async def closed() -> int:
        RAN["write"] += 1
        conn = await note("a")
        if way == "close":
            await conn.close()
        else:
            conn.terminate()
        return 1

    assert "step 'write' has closed its connection by hand" in await error_of(database, closed)
    assert RAN == {"write": 1}
    assert await notes(connection) == []


async def test_an_error_that_was_caught_without_a_savepoint_fails_the_step(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def caught() -> int:
        conn = await note("a")
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await conn.execute("select 1 / 0")
        return 1

    assert "async with conn.transaction()" in await error_of(database, caught)
    assert await notes(connection) == []


@pytest.mark.parametrize(
    ("text", "told"), [("set local role nobody", "has set a role"), ("set transaction read only", "read-only")]
)
async def test_a_transaction_that_cannot_take_the_checkpoint_fails_the_step(
    text: str, told: str, database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("drop role if exists nobody; create role nobody; grant insert on notes to nobody")

    @zart_step("write")
    async def powerless() -> int:
        conn = await note("a")
        await conn.execute(text)
        return 1

    assert told in await error_of(database, powerless)
    assert await notes(connection) == []
    await connection.execute("drop owned by nobody; drop role nobody")


async def test_a_step_that_cancels_its_own_execution_in_its_transaction_is_told_so(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def suicidal() -> int:
        conn = await note("a")
        async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
            await scheduler.cancel("e", conn=conn)
        return 1

    assert "has itself cancelled its execution" in await error_of(database, suicidal)
    assert await notes(connection) == []


async def _twice() -> None:
    await zart.trx()
    await zart.trx()


async def _twice_at_once() -> None:
    await asyncio.gather(zart.trx(), zart.trx())


@pytest.mark.parametrize("calls", [_twice, _twice_at_once])
async def test_a_second_transaction_in_one_try_is_refused(calls: Callable[[], Any], database: Database) -> None:
    assert "trx() was called twice in one try of step 'write'" in await error_of(database, zart_step("write")(calls))


async def test_trx_is_refused_in_a_body(database: Database) -> None:
    @zart_durable("careless")
    async def careless() -> None:
        await zart.trx()

    async with Engine(database, [careless]) as engine:
        await engine.start("e", careless)
        error = (await engine.ended("e")).error
    assert NotInStep.__qualname__ in error["type"]
    assert "called in the body of execution 'e' at test_trx_attacked.py" in error["message"]


async def test_trx_is_refused_in_a_thread(database: Database) -> None:
    @zart_step("write")
    def plain() -> None:
        asyncio.run(_twice())

    assert "was called in a thread of step 'write'" in await error_of(database, plain)


async def test_trx_is_refused_in_a_plain_function_that_gives_a_coroutine(database: Database) -> None:
    @zart_step("write")
    def plain() -> Any:
        return _twice()

    assert "was called in a thread of step 'write'" in await error_of(database, plain)


async def test_trx_is_refused_in_an_event_loop_of_another_thread(database: Database) -> None:
    @zart_step("write")
    async def asynchronous() -> None:
        await asyncio.to_thread(asyncio.run, _twice())

    assert "was called in a thread of step 'write'" in await error_of(database, asynchronous)


async def test_trx_is_refused_in_a_step_inside_of_another_one(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("inner")
    async def inner() -> None:
        await note("inner")

    @zart_step("outer")
    async def outer() -> int:
        await note("outer")
        await inner()
        return 1

    said = await error_of(database, outer)
    assert "step 'inner' at test_trx_attacked.py" in said
    assert "runs inside of step 'outer' and has no checkpoint of its own" in said
    assert await notes(connection) == []


async def test_a_connection_that_leaks_out_of_its_step_is_of_no_use(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def leaking() -> None:
        SEEN["conn"] = await note("a")

    @zart_durable("leaky")
    async def leaky() -> str:
        await leaking()
        try:
            await SEEN["conn"].execute("insert into notes values ('leaked')")
        except asyncpg.InterfaceError as error:
            return str(error)
        return "it worked"

    async with Engine(database, [leaky]) as engine:
        await engine.start("e", leaky)
        assert "released" in (await engine.ended("e")).output
    assert await notes(connection) == ["a"]


async def test_a_task_left_behind_gets_no_transaction(database: Database) -> None:
    async def late() -> None:
        await GATES["go"].wait()
        try:
            await zart.trx()
        except NotInStep as error:
            SEEN["late"] = str(error)

    @zart_step("write")
    async def leaving() -> int:
        SEEN["task"] = asyncio.create_task(late())
        return 1

    assert await error_of(database, leaving) == "value 1"
    GATES["go"].set()
    await SEEN["task"]
    assert "by a task that step 'write' has left behind" in SEEN["late"]


async def test_a_task_left_waiting_for_its_transaction_does_not_get_it(database: Database) -> None:
    """And the step is kept without one."""

    @zart_step("write")
    async def leaving() -> int:
        SEEN["task"] = asyncio.create_task(zart.trx())
        await asyncio.sleep(0)
        return 1

    assert await error_of(database, leaving) == "value 1"
    with pytest.raises(TransactionMisused, match="still waiting for a connection when its step ended"):
        await SEEN["task"]
    assert [step.status for step in SEEN["history"]] == ["completed"]


async def test_a_statement_left_running_fails_the_step(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write")
    async def leaving() -> int:
        conn = await note("a")
        SEEN["task"] = asyncio.create_task(conn.execute("select pg_sleep(1)"))
        await asyncio.sleep(0)
        return 1

    assert "has ended while its connection was still running a statement" in await error_of(database, leaving)
    assert await notes(connection) == []
    await asyncio.gather(SEEN["task"], return_exceptions=True)


@pytest.mark.parametrize(
    ("text", "told"), [("rollback", "committed or rolled back by hand"), ("select 1 / 0", "spoilt the transaction")]
)
async def test_a_task_left_behind_cannot_spoil_the_commit_unnoticed(
    text: str, told: str, database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says something between the fence's answer and COMMIT."""

    async def fence_and_then(conn: Any, *arguments: Any, **keywords: Any) -> Any:
        answer = await trx(conn, *arguments, **keywords)
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await SEEN["conn"].execute(text)
        return answer

    monkeypatch.setattr(transactions, "trx", fence_and_then)

    @zart_step("write")
    async def leaving() -> int:
        SEEN["conn"] = await note("a")
        return 1

    assert told in await error_of(database, leaving)
    assert await notes(connection) == []


# -- others in the way


async def test_a_deferred_constraint_that_fails_at_commit_is_the_steps_failure(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("own")
    async def own() -> None:
        conn = await note("a")
        await conn.execute("insert into owned values (99)")

    assert "ForeignKeyViolationError" in await error_of(database, own)
    assert await notes(connection) == []


async def test_a_failure_at_commit_is_retried_as_any_other(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("own", retry="fixed(1, 10ms)")
    async def own() -> int:
        RAN["own"] += 1
        conn = await note(f"try {RAN['own']}")
        await conn.execute("insert into owned values ($1)", 99 if RAN["own"] == 1 else 1)
        return RAN["own"]

    assert await error_of(database, own) == "value 2"
    assert await notes(connection) == ["try 2"]
    (step,) = SEEN["history"]
    assert (step.attempts, len(step.failed_attempts)) == (2, 1)


async def _both(engine: Engine, durable: Any) -> None:
    """Two executions of a durable function come to their end without a retry, one of them in two tries."""
    for name in "ab":
        await engine.start(name, durable, name)
    for name in "ab":
        record = await engine.ended(name)
        assert record.status == ExecutionStatus.COMPLETED, record.error
        (step,) = await engine.history(name)
        assert (step.attempts, step.failed_attempts) == (1, ())


async def _meet(first_tries: int = 2) -> None:
    """Returns when as many have come here; later ones at once."""
    RAN["met"] += 1
    if RAN["met"] == first_tries:
        GATES["met"].set()
    await GATES["met"].wait()


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])
async def test_serialization_failures_run_the_step_again_without_a_retry(
    isolation: str, database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("add")
    async def add(name: str) -> None:
        RAN["add"] += 1
        conn = await zart.trx()
        await conn.execute(f"set transaction isolation level {isolation}")
        seen = await conn.fetchval("select sum(n) from counters")
        await _meet()
        # Serializable: each writes what the other has read, and fails in COMMIT. Else both write the same row.
        row = 1 if isolation != "serializable" or name == "a" else 2
        await conn.execute("update counters set n = $2 where id = $1", row, seen + 1)

    @zart_durable("adding")
    async def adding(name: str) -> None:
        await add(name)

    async with Engine(database, [adding]) as engine:
        await _both(engine, adding)
    assert RAN["add"] == 3
    assert await connection.fetchval("select max(n) from counters") == 2


async def test_a_deadlock_runs_the_step_again_without_a_retry(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("add")
    async def add(name: str) -> None:
        RAN["add"] += 1
        conn = await zart.trx()
        first, second = (1, 2) if name == "a" else (2, 1)
        await conn.execute("update counters set n = n + 1 where id = $1", first)
        await _meet()
        await conn.execute("update counters set n = n + 1 where id = $1", second)

    @zart_durable("adding")
    async def adding(name: str) -> None:
        await add(name)

    async with Engine(database, [adding]) as engine:
        await _both(engine, adding)
    assert RAN["add"] == 3
    assert [row[0] for row in await connection.fetch("select n from counters")] == [2, 2]


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
async def test_the_timeout_holds_for_all_that_is_run_again(scope: Any, database: Database) -> None:
    @zart_step("write", timeout="300ms", timeout_scope=scope, retry="fixed(3, 10ms)")
    async def unlucky() -> None:
        RAN["write"] += 1
        conn = await zart.trx()
        await conn.execute("do $$ begin raise exception using errcode = '40001'; end $$")

    assert "timed out" in await error_of(database, unlucky)
    assert RAN["write"] > 2
    (step,) = SEEN["history"]
    assert (step.attempts, step.failed_attempts) == (1, ())


# -- the answer to COMMIT is lost


async def _run_through(proxy: Proxy, retry: str | None = None) -> Any:
    async with Engine(proxy.database, [body]) as engine:
        await engine.start("e", body)
        record = await engine.ended("e", within=40)
        assert record.status == ExecutionStatus.COMPLETED, record.error
        (step,) = await engine.history("e")
        assert (step.attempts, step.failed_attempts) == (1, ())
    return record.output


async def test_a_commit_whose_answer_was_lost_is_found_out_and_the_step_does_not_run_again(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with Proxy(database) as proxy:
        GATES["passed"].set()
        proxy.cut_next(COMMIT, GATES["passed"])
        assert await _run_through(proxy) == 1
        assert proxy.cut == 1
    assert RAN == {"write": 1}
    assert await notes(connection) == ["try 1"]


async def test_a_commit_that_never_arrived_is_found_out_and_the_step_runs_again_without_a_retry(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with Proxy(database) as proxy:
        proxy.cut_next(COMMIT, None)
        assert await _run_through(proxy) == 2
        assert proxy.cut == 1
    assert await notes(connection) == ["try 2"]


async def _somebody_waits_for_a_lock(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'zart trx' and wait_event_type = 'Lock'"
            " and datname = current_database()"
        )
    )


async def test_a_commit_that_is_still_on_its_way_is_waited_for(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with Proxy(database) as proxy:
        proxy.cut_next(COMMIT, GATES["passed"])
        running = asyncio.create_task(_run_through(proxy))
        await eventually(lambda: _somebody_waits_for_a_lock(connection))
        GATES["passed"].set()
        assert await running == 1
    assert RAN == {"write": 1}
    assert await notes(connection) == ["try 1"]


async def test_a_transaction_whose_client_is_gone_holds_up_nobody_for_long(
    database: Database, connection: asyncpg.Connection
) -> None:
    """The fence has set the server's own timeouts: COMMIT does not come, and the step runs again."""
    async with Proxy(database) as proxy:
        proxy.cut_next(COMMIT, GATES["never"])
        assert await _run_through(proxy) == 2
    assert await notes(connection) == ["try 2"]


async def test_a_commit_that_is_not_answered_in_time_is_found_out(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "COMMIT_DEADLINE", 0.3)
    async with Proxy(database) as proxy:
        proxy.silence_next(COMMIT)
        assert await _run_through(proxy) == 2
        assert proxy.silenced == 1
    assert await notes(connection) == ["try 2"]


async def test_a_fence_whose_answer_was_lost_runs_the_step_again_without_a_retry(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with Proxy(database) as proxy:
        proxy.cut_next("zart_trx_1", None)
        assert await _run_through(proxy) == 2
    assert await notes(connection) == ["try 2"]


async def test_finding_out_goes_on_though_it_fails_too(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Any] = [None, asyncpg.ConnectionDoesNotExistError(), asyncpg.LockNotAvailableError()]

    async def failing(*arguments: Any, **keywords: Any) -> Any:
        if failures and (failure := failures.pop(0)):
            raise failure
        return await trx(*arguments, **keywords)

    monkeypatch.setattr(transactions, "trx", failing)
    async with Proxy(database) as proxy:
        GATES["passed"].set()
        proxy.cut_next(COMMIT, GATES["passed"])
        assert await _run_through(proxy) == 1
    assert (RAN, failures) == ({"write": 1}, [])
    assert await notes(connection) == ["try 1"]


async def test_a_step_that_is_cancelled_in_its_commit_comes_to_its_end_before_the_next_one_begins(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("next")
    async def after() -> list[str]:
        return await notes(connection)

    @zart_durable("impatient")
    async def impatient() -> list[str]:
        step = asyncio.create_task(write())
        await eventually(lambda: proxy.cut)
        step.cancel()
        await asyncio.wait([step])
        assert step.cancelled()
        SEEN["cancelled"] = True
        return await after()

    async with Proxy(database) as proxy, Engine(proxy.database, [impatient]) as engine:
        proxy.cut_next(COMMIT, GATES["passed"])
        await engine.start("e", impatient)
        await eventually(lambda: SEEN.get("cancelled"))
        assert await notes(connection) == []
        GATES["passed"].set()
        assert (await engine.ended("e")).output == ["try 1"]
    assert RAN == {"write": 1}


async def test_a_lost_commit_is_found_out_after_the_worker_has_changed_its_identity(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with Proxy(database) as proxy:
        proxy.cut_next(COMMIT, GATES["passed"])
        async with Engine(proxy.database, [body]) as engine:
            before = engine.loops[0].place.worker_id
            await engine.start("e", body)
            await eventually(lambda: proxy.cut)
            await engine.cut_connections()
            GATES["passed"].set()
            assert (await engine.ended("e")).output == 1
            assert engine.loops[0].place.worker_id != before
    assert await notes(connection) == ["try 1"]


async def test_what_is_stored_already_is_given_to_the_body_and_the_writes_are_undone(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def late() -> int:
        await note("a")
        await connection.execute(
            "insert into zart.zart_tasks(bucket, id, run, step_key, epoch, kind, status, name, result)"
            " select bucket, id, run, $1, 0, 1, 1, 'write', '99' from zart.zart_queue",
            step_key(KeySpace.STEP, "write"),
        )
        return 1

    assert await error_of(database, late) == "value 99"
    assert await notes(connection) == []


# -- the claim is lost


async def test_a_zombie_commits_nothing(database: Database, connection: asyncpg.Connection) -> None:
    SEEN["gated"] = 1
    async with Engine(database, [body]) as engine:
        await engine.start("e", body)
        await eventually(lambda: RAN["write"] == 1)
        assert await engine.take_over(engine.loops[0]) == 1
        GATES["go"].set()
        output = (await engine.ended("e")).output
        assert output > 1
        assert engine.loops[0].place.words[CLAIMS_LOST] >= 1
    assert await notes(connection) == [f"try {output}"]


async def test_a_worker_whose_identity_changed_meanwhile_commits_what_it_still_holds(
    database: Database, connection: asyncpg.Connection
) -> None:
    SEEN["gated"] = 1
    async with Engine(database, [body]) as engine:
        loop = engine.loops[0]
        await engine.start("e", body)
        await eventually(lambda: RAN["write"] == 1)
        before = loop.place.worker_id
        await engine.cut_connections()
        await eventually(lambda: loop.place.worker_id != before and not loop.place.previous_id)
        GATES["go"].set()
        assert (await engine.ended("e")).output == 1
    assert await notes(connection) == ["try 1"]


async def test_a_step_that_returns_while_its_worker_is_without_an_identity_waits_for_it(
    database: Database, connection: asyncpg.Connection, server_dsn: str
) -> None:
    name = await connection.fetchval("select current_database()")
    server = await asyncpg.connect(server_dsn)
    SEEN["gated"] = 1
    async with Engine(database, [body]) as engine:
        (loop,) = engine.loops
        await engine.start("e", body)
        await eventually(lambda: RAN["write"] == 1)
        await server.execute(f"alter database {name} allow_connections false")
        await connection.execute(CUT_WORKERS)
        await eventually(lambda: loop.place.previous_id)
        GATES["go"].set()
        await eventually(lambda: any(turn.storing for turn in loop.turns.values()) or RAN["write"] > 1)
        await server.execute(f"alter database {name} allow_connections true")
        assert (await engine.ended("e")).output == 1
    assert await notes(connection) == ["try 1"]
    await server.close()


async def test_a_fence_of_an_identity_that_is_just_changed_loses_nothing(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that the claim is not held. It is, under another name."""

    async def fence_late(*arguments: Any, **keywords: Any) -> Any:
        if RAN["write"] == 1:
            loop, before = SEEN["loop"], SEEN["loop"].place.worker_id
            await connection.execute(CUT_WORKERS)
            await eventually(lambda: loop.place.worker_id != before and not loop.place.previous_id)
        return await trx(*arguments, **keywords)

    monkeypatch.setattr(transactions, "trx", fence_late)
    async with Engine(database, [body]) as engine:
        SEEN["loop"] = engine.loops[0]
        await engine.start("e", body)
        assert (await engine.ended("e")).output == 2
        (step,) = await engine.history("e")
        assert (step.attempts, step.failed_attempts) == (1, ())
    assert await notes(connection) == ["try 2"]


async def test_what_a_takeover_meets_between_fence_and_commit_is_committed_once(
    database: Database, connection: asyncpg.Connection
) -> None:
    """The fence holds the claim: it is passed over, and freed when COMMIT has come."""
    async with Proxy(database) as proxy, Engine(proxy.database, [body]) as engine:
        proxy.cut_next(COMMIT, GATES["passed"])
        await engine.start("e", body)
        await eventually(lambda: proxy.cut)
        taking = asyncio.create_task(engine.take_over(engine.loops[0]))
        await eventually(lambda: _somebody_waits_for_a_lock(connection))
        assert not taking.done()
        GATES["passed"].set()
        await taking
        assert (await engine.ended("e")).output == 1
    assert await notes(connection) == ["try 1"]


async def test_a_step_that_returns_when_its_execution_was_cancelled_commits_nothing_and_is_not_run_again(
    database: Database, connection: asyncpg.Connection
) -> None:
    SEEN["gated"] = 1
    async with Engine(database, [body]) as engine, zart.PostgresScheduler.connect(database.dsn) as scheduler:
        await engine.start("e", body)
        await eventually(lambda: RAN["write"] == 1)
        assert await scheduler.cancel("e")
        GATES["go"].set()
        await eventually(lambda: not engine.loops[0].turns)
    assert RAN == {"write": 1}
    assert await notes(connection) == []


async def test_a_cancel_that_races_the_commit_leaves_all_or_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)

    @zart_step("write")
    async def named() -> None:
        await note(zart.context().execution_id)
        await asyncio.sleep(chance.uniform(0, 0.01))

    @zart_durable("raced")
    async def raced() -> None:
        await named()

    async def race(name: str, scheduler: zart.PostgresScheduler) -> None:
        await scheduler.start_for(raced, name)
        await asyncio.sleep(chance.uniform(0, 0.06))
        await scheduler.cancel(name)

    config = WorkerConfig(lease_timeout="1h", trx_pool_size=10)
    async with Engine(database, [raced], config=config) as engine:
        async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
            for batch in range(10):
                await asyncio.gather(*(race(f"{batch}-{n}", scheduler) for n in range(10)))
        await engine.all_ended()
        await eventually(lambda: not engine.loops[0].turns)
    kept = await connection.fetch(
        "select e.execution_id from zart.zart_tasks t join zart.zart_executions e using (id) where t.status = 1"
        " order by 1"
    )
    print(len(kept), "of 100 were committed")
    assert await notes(connection) == [row[0] for row in kept]


async def test_a_drained_worker_lets_the_step_commit(database: Database, connection: asyncpg.Connection) -> None:
    SEEN["gated"] = 1
    async with Engine(database, [body], workers=2) as engine:
        await engine.start("e", body)
        await eventually(lambda: RAN["write"] == 1)
        holder = next(loop for loop in engine.loops if loop.turns)
        holder.stop()
        GATES["go"].set()
        assert (await engine.ended("e")).output == 1
    assert await notes(connection) == ["try 1"]
