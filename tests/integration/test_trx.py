"""`trx()`: what a step writes to the database, and its checkpoint, are one transaction. One sentence each."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import zart
import zart.testing
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import WorkerConfig, zart_durable, zart_step
from zart.errors import NotInExecution, SerializationError, StepFailed, StepTimedOut
from zart.meters import DATABASE_ERRORS
from zart.model import ExecutionStatus

RAN: collections.Counter[str] = collections.Counter()
SEEN: dict[str, Any] = {}
GATES: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    SEEN.clear()
    GATES.clear()


@pytest_asyncio.fixture(autouse=True)
async def _notes(connection: asyncpg.Connection) -> None:
    await connection.execute("create table notes(text text)")


class Declined(Exception): ...


async def note(text: str) -> Any:
    """Write a note in the step's transaction."""
    conn = await zart.trx()
    await conn.execute("insert into notes values ($1)", text)
    return conn


async def notes(connection: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await connection.fetch("select text from notes order by text")]


def body_of(step: Any) -> Any:
    """A durable function that runs one step, and tells how it ended."""

    @zart_durable("body")
    async def body() -> str:
        try:
            return f"value {await step()}"
        except (StepFailed, Declined) as error:
            SEEN["error"] = error
            return f"{type(error).__name__}: {error}"

    return body


async def outcome(database: Database, step: Any, **config: Any) -> str:
    """How a step ends in an execution."""
    body = body_of(step)
    async with Engine(database, [body], config=WorkerConfig(lease_timeout="1h", **config)) as engine:
        await engine.start("e", body)
        record = await engine.ended("e")
        SEEN["history"] = await engine.history("e")
    assert record.status == ExecutionStatus.COMPLETED, record.error
    return str(record.output)


# -- together


async def test_writes_and_checkpoint_are_committed_by_one_transaction(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def write() -> int:
        await note("a")
        return 7

    assert await outcome(database, write) == "value 7"
    row = await connection.fetchrow(
        "select n.xmin = t.xmin as together, t.kind, t.status, t.attempts, t.seconds > 0 as timed, t.result::text"
        " from notes n, zart.zart_tasks t where t.name = 'write'"
    )
    assert tuple(row or ()) == (True, 1, 1, 1, True, "7")


async def test_history_tells_when_the_step_began_and_ended_not_its_transaction(database: Database) -> None:
    @zart_step("write")
    async def write() -> None:
        conn = await zart.trx()
        SEEN["began"] = await conn.fetchval("select now()")
        SEEN["ended"] = await conn.fetchval("select clock_timestamp() from pg_sleep(0.3)")

    await outcome(database, write)
    (step,) = SEEN["history"]
    assert abs(step.started_at - SEEN["began"]) < timedelta(seconds=0.2)  # known but for the way to the server
    assert step.finished_at >= SEEN["ended"]


async def test_nothing_is_seen_by_others_before_the_step_has_returned(
    database: Database, connection: asyncpg.Connection
) -> None:
    GATES["go"] = asyncio.Event()

    @zart_step("write")
    async def write() -> None:
        await note("a")
        RAN["write"] += 1
        await GATES["go"].wait()

    body = body_of(write)
    async with Engine(database, [body]) as engine:
        await engine.start("e", body)
        await eventually(lambda: RAN["write"])
        assert await notes(connection) == []
        GATES["go"].set()
        await engine.ended("e")
    assert await notes(connection) == ["a"]


async def test_the_value_comes_back_as_it_was_stored_and_the_step_never_runs_again(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def write() -> tuple[int, str]:
        RAN["write"] += 1
        await note("a")
        return 1, "b"

    @zart_durable("body")
    async def body() -> str:
        value = await write()
        await zart.sleep("pause", 0.05)
        return repr(value)

    async with Engine(database, [body], config=WorkerConfig(lease_timeout="1h", park_grace=0)) as engine:
        await engine.start("e", body)
        assert (await engine.ended("e")).output == "(1, 'b')"
    assert RAN == {"write": 1}
    assert await notes(connection) == ["a"]


async def test_a_step_that_writes_nothing_is_kept_too(database: Database) -> None:
    @zart_step("read")
    async def read() -> int:
        conn = await zart.trx()
        return int(await conn.fetchval("select 40 + 2"))

    assert await outcome(database, read) == "value 42"
    assert [step.name for step in SEEN["history"]] == ["read"]


async def test_starts_and_events_join_the_transaction(database: Database, connection: asyncpg.Connection) -> None:
    @zart_durable("other")
    async def other() -> str:
        return await zart.wait_for_event("go", str)

    @zart_step("start")
    async def start(fail: bool) -> None:
        conn = await zart.trx()
        async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
            await scheduler.start_for(other, f"other-{fail}", conn=conn)
            await scheduler.offer_event(f"other-{fail}", "go", "gone", conn=conn)
        if fail:
            raise ValueError

    @zart_durable("body")
    async def body() -> None:
        await zart.step_or(start(True).named("start-1"), None)
        await start(False)

    async with Engine(database, [body, other]) as engine:
        await engine.start("e", body)
        assert (await engine.ended("e")).status == ExecutionStatus.COMPLETED
        assert (await engine.ended("other-False")).output == "gone"
    rows = await connection.fetch("select execution_id from zart.zart_executions order by id")
    assert [row[0] for row in rows] == ["e", "other-False"]


async def test_savepoints_work(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write")
    async def write() -> int:
        conn = await note("kept")
        try:
            async with conn.transaction():
                await conn.execute("insert into notes values ('dropped')")
                await conn.execute("select 1 / 0")
        except asyncpg.DivisionByZeroError:
            pass
        async with conn.transaction():
            await conn.execute("insert into notes values ('too')")
        return 1

    assert await outcome(database, write) == "value 1"
    assert await notes(connection) == ["kept", "too"]


async def test_the_isolation_may_be_chosen(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write")
    async def write() -> str:
        conn = await zart.trx()
        await conn.execute("set transaction isolation level serializable")
        await conn.execute("insert into notes values ('a')")
        return str(await conn.fetchval("show transaction_isolation"))

    assert await outcome(database, write) == "value serializable"
    assert await notes(connection) == ["a"]


async def test_renewed_leases_do_not_disturb_a_serializable_transaction(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def write() -> int:
        RAN["write"] += 1
        conn = await zart.trx()
        await conn.execute("set transaction isolation level serializable")
        await conn.execute("insert into notes values ('a')")
        await connection.execute("update zart.zart_workers set lease_until = lease_until + interval '1 s'")
        return RAN["write"]

    assert await outcome(database, write) == "value 1"


async def test_a_scheduled_step_has_it_too(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write-{n}", retry="fixed(1, 10ms)")
    async def write(n: int) -> int:
        RAN[f"write-{n}"] += 1
        await note(f"{n}, try {RAN[f'write-{n}']}")
        if RAN["write-0"] == 1 and n == 0:
            raise ValueError
        return n

    @zart_durable("body")
    async def body() -> list[int]:
        return [one.unwrap() for one in await zart.wait([zart.schedule(write(n)) for n in range(3)])]

    async with Engine(database, [body, write], workers=2) as engine:
        await engine.start("e", body)
        assert (await engine.ended("e")).output == [0, 1, 2]
    assert await notes(connection) == ["0, try 2", "1, try 1", "2, try 1"]
    together = await connection.fetch(
        "select e.execution_id from notes n join zart.zart_tasks t on t.xmin = n.xmin join zart.zart_executions e using"
        " (id) where t.name = 'write-' || left(n.text, 1) and e.parent is not null"
    )
    assert len(together) == 3


async def test_a_scheduled_step_whose_worker_is_lost_after_its_commit_does_not_run_again(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def write() -> int:
        RAN["write"] += 1
        await note("a")
        return RAN["write"]

    @zart_durable("body")
    async def body() -> int:
        return await zart.schedule(write())

    # The execution that the step is cannot end before the test has looked: its ending waits for its record.
    await connection.execute(
        "create function hold() returns trigger language plpgsql as $$ begin"
        " if new.parent is not null then perform pg_advisory_xact_lock_shared(5); end if; return new; end $$;"
        "create trigger hold before update of status on zart.zart_executions for each row execute function hold()"
    )
    await connection.execute("select pg_advisory_lock(5)")
    async with Engine(database, [body, write]) as engine:
        await engine.start("e", body)
        await eventually(lambda: notes(connection))
        await engine.cut_connections()
        await engine.take_over(engine.loops[0])
        await connection.execute("select pg_advisory_unlock(5)")
        assert (await engine.ended("e")).output == 1
    assert RAN == {"write": 1}
    assert await notes(connection) == ["a"]


# -- rolled back


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("no"), "StepFailed"), (Declined("no"), "Declined: no"), (SystemExit(), "StepFailed")],
)
async def test_a_step_that_raises_leaves_nothing(
    error: BaseException, told: str, database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write", raises=Declined)
    async def write() -> None:
        await note("a")
        raise error

    assert (await outcome(database, write)).startswith(told)
    assert await notes(connection) == []


async def test_a_failed_try_is_rolled_back_and_the_next_one_begins_a_transaction_of_its_own(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write", retry="fixed(3, 10ms)")
    async def write() -> int:
        RAN["write"] += 1
        await note(f"try {RAN['write']}")
        if RAN["write"] < 3:
            raise ValueError
        return RAN["write"]

    assert await outcome(database, write) == "value 3"
    assert await notes(connection) == ["try 3"]
    (step,) = SEEN["history"]
    assert (step.attempts, len(step.failed_attempts)) == (3, 2)


@pytest.mark.parametrize("way", ["raises", "is out of time", "gives what cannot be kept"])
async def test_nothing_is_recorded_of_a_failed_try_before_its_transaction_has_ended(
    way: str, database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "create table open_at(what text, n int); create function look() returns trigger language plpgsql as $$ begin"
        " insert into public.open_at select tg_table_name, count(*) from pg_stat_activity"
        " where application_name = 'zart trx' and xact_start is not null and datname = current_database();"
        " return new; end $$;"
        "create trigger look before insert on zart.zart_tasks for each row execute function look();"
        "create trigger look before insert on zart.zart_attempts for each row execute function look()"
    )

    @zart_step("write", retry="fixed(1, 5ms)", timeout="150ms" if way == "is out of time" else None)
    async def write() -> Any:
        await note("a")
        if way == "raises":
            raise ValueError
        if way == "is out of time":
            await asyncio.Event().wait()
        return float("nan")

    await outcome(database, write)
    found = [tuple(row) for row in await connection.fetch("select what, n from open_at order by what")]
    assert found == ([("zart_attempts", 0)] if way == "raises" else []) + [("zart_tasks", 0)]


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
async def test_a_step_that_is_out_of_time_leaves_nothing(
    scope: Any, database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write", timeout="200ms", timeout_scope=scope)
    async def write() -> None:
        conn = await note("a")
        await conn.execute("select pg_sleep(30)")

    assert (await outcome(database, write)).startswith("StepTimedOut")
    assert await notes(connection) == []


async def test_a_step_that_swallows_the_end_of_its_time_leaves_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write", timeout="100ms")
    async def write() -> int:
        await note("a")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 1

    assert (await outcome(database, write)).startswith("StepTimedOut")
    assert await notes(connection) == []


async def test_a_value_that_cannot_be_kept_leaves_nothing(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write", retry="fixed(3, 10ms)")
    async def write() -> Any:
        RAN["write"] += 1
        await note("a")
        return float("nan")

    assert (await outcome(database, write)).startswith("SerializationError")
    assert isinstance(SEEN["error"], SerializationError)
    assert RAN == {"write": 1}
    assert await notes(connection) == []


async def test_a_step_that_swallows_the_end_of_its_execution_leaves_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("write")
    async def write() -> int:
        await note("a")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 1

    @zart_durable("body", timeout="200ms")
    async def body() -> int:
        return await write()

    async with Engine(database, [body]) as engine:
        await engine.start("e", body)
        assert (await engine.ended("e")).error["kind"] == "deadline_exceeded"
        await nobody_in_a_transaction(connection)
        assert await engine.history("e") == []
    assert await notes(connection) == []


async def test_a_cancelled_execution_leaves_nothing(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write")
    async def write() -> None:
        conn = await note("a")
        RAN["write"] += 1
        await conn.execute("select pg_sleep(30)")

    body = body_of(write)
    async with Engine(database, [body]) as engine, zart.PostgresScheduler.connect(database.dsn) as scheduler:
        await engine.start("e", body)
        await eventually(lambda: RAN["write"])
        await scheduler.cancel("e")
        await eventually(lambda: not engine.loops[0].turns)
        await nobody_in_a_transaction(connection)
    assert await notes(connection) == []


async def test_a_task_group_that_cancels_the_step_rolls_it_back(
    database: Database, connection: asyncpg.Connection
) -> None:
    GATES["written"] = asyncio.Event()

    @zart_step("write")
    async def write() -> None:
        await note("a")
        GATES["written"].set()
        await asyncio.Event().wait()

    @zart_step("fail")
    async def fail() -> None:
        await GATES["written"].wait()
        raise ValueError

    @zart_durable("body")
    async def body() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                group.create_task(fail())
        except* StepFailed:
            pass
        return "done"

    async with Engine(database, [body]) as engine:
        await engine.start("e", body)
        assert (await engine.ended("e")).output == "done"
        await nobody_in_a_transaction(connection)
    assert await notes(connection) == []


async def nobody_in_a_transaction(connection: asyncpg.Connection) -> None:
    """No step's connection has a transaction open."""

    async def idle() -> bool:
        count = await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'zart trx'"
            " and xact_start is not null and datname = current_database()"
        )
        return bool(count == 0)

    await eventually(idle)


# -- connections


async def test_a_worker_without_trx_makes_no_connection_for_it(
    database: Database, connection: asyncpg.Connection
) -> None:
    @zart_step("plain")
    async def plain() -> int:
        count = "select count(*) from pg_stat_activity where application_name = 'zart trx'"
        return int(await connection.fetchval(count + " and datname = current_database()"))

    assert await outcome(database, plain) == "value 0"


async def test_connections_are_bounded_and_the_rest_waits(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write-{n}")
    async def write(n: int) -> int:
        await note(f"{n:02}")
        RAN["open"] += 1
        SEEN["most"] = max(SEEN.get("most", 0), RAN["open"])
        await asyncio.sleep(0.01)
        RAN["open"] -= 1
        return n

    @zart_durable("many")
    async def many() -> int:
        return sum(await asyncio.gather(*(write(n) for n in range(20))))

    async with Engine(database, [many], config=WorkerConfig(lease_timeout="1h", trx_pool_size=3)) as engine:
        await engine.start("e", many)
        assert (await engine.ended("e")).output == 190
    assert SEEN["most"] == 3
    assert await notes(connection) == [f"{n:02}" for n in range(20)]


async def test_waiting_for_a_connection_blocks_no_tick_and_is_limited_by_the_timeout(database: Database) -> None:
    GATES["go"] = asyncio.Event()

    @zart_step("hold")
    async def hold() -> str:
        await note("hold")
        RAN["hold"] += 1
        await GATES["go"].wait()
        return "held"

    @zart_step("late", timeout="100ms")
    async def late() -> None:
        await note("late")

    @zart_durable("holder")
    async def holder() -> str:
        return await hold()

    body = body_of(late)
    async with Engine(database, [holder, body], config=WorkerConfig(lease_timeout="1h", trx_pool_size=1)) as engine:
        await engine.start("h", holder)
        await eventually(lambda: RAN["hold"])
        await engine.start("e", body)
        assert (await engine.ended("e")).output.startswith(StepTimedOut.__name__)
        GATES["go"].set()
        assert (await engine.ended("h")).output == "held"


async def test_a_connection_comes_to_the_next_step_as_if_it_was_just_made(
    database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("drop role if exists spoiler; create role spoiler superuser")

    @zart_step("spoil")
    async def spoil() -> int:
        conn = await zart.trx()
        await conn.execute("set search_path = pg_catalog")
        await conn.execute("set statement_timeout = '7s'")
        await conn.execute("set session authorization spoiler")
        await conn.execute("create temp table scratch(n int)")
        await conn.execute("select pg_advisory_lock(77)")
        return int(await conn.fetchval("select pg_backend_pid()"))

    @zart_step("look")
    async def look() -> list[Any]:
        conn = await zart.trx()
        return list(
            await conn.fetchrow(
                "select pg_backend_pid(), current_setting('search_path'), current_setting('statement_timeout'),"
                " to_regclass('pg_temp.scratch')::text, current_setting('lock_timeout'), current_user"
            )
            or ()
        )

    @zart_durable("body")
    async def body() -> list[Any]:
        return [await spoil(), *await look()]

    async with Engine(database, [body], config=WorkerConfig(lease_timeout="1h", trx_pool_size=1)) as engine:
        await engine.start("e", body)
        first, second, *rest = (await engine.ended("e")).output
        assert first == second
        assert rest == ['"$user", public', "0", None, "0", "postgres"]
        assert await connection.fetchval("select pg_try_advisory_lock(77)")
    await connection.execute("drop role spoiler")


async def test_codecs_that_a_step_sets_are_its_own(database: Database) -> None:
    @zart_step("spoil")
    async def spoil() -> Any:
        conn = await zart.trx()
        await conn.set_type_codec("json", encoder=str, decoder=lambda _: "spoilt", schema="pg_catalog")
        return await conn.fetchval("select '1'::json")

    @zart_step("look")
    async def look() -> Any:
        return await (await zart.trx()).fetchval("select '1'::json")

    @zart_durable("body")
    async def body() -> list[Any]:
        return [await spoil(), await look()]

    async with Engine(database, [body], config=WorkerConfig(lease_timeout="1h", trx_pool_size=1)) as engine:
        await engine.start("e", body)
        assert (await engine.ended("e")).output == ["spoilt", "1"]


async def test_connections_are_closed_with_the_worker(database: Database, connection: asyncpg.Connection) -> None:
    @zart_step("write")
    async def write() -> None:
        await note("a")

    count = "select count(*) from pg_stat_activity where application_name = 'zart trx' and datname = current_database()"
    body = body_of(write)
    async with Engine(database, [body]) as engine:
        await engine.start("e", body)
        await engine.ended("e")
        assert await connection.fetchval(count) == 1

    async def gone() -> bool:
        return bool(await connection.fetchval(count) == 0)

    await eventually(gone)


async def test_while_the_database_is_away_a_step_waits_for_its_transaction_and_uses_no_retry(
    database: Database, connection: asyncpg.Connection, server_dsn: str
) -> None:
    name = await connection.fetchval("select current_database()")
    server = await asyncpg.connect(server_dsn)

    @zart_step("write")
    async def write() -> int:
        RAN["write"] += 1
        await server.execute(f"alter database {name} allow_connections false")
        await note("a")
        return RAN["write"]

    body = body_of(write)
    async with Engine(database, [body]) as engine:
        errors = engine.loops[0].place.words
        await engine.start("e", body)
        await eventually(lambda: errors[DATABASE_ERRORS] >= 3)
        await server.execute(f"alter database {name} allow_connections true")
        assert (await engine.ended("e")).output == "value 1"
    await server.close()


async def test_outside_an_execution_a_step_call_has_no_transaction() -> None:
    @zart_step("write")
    async def write() -> None:
        await note("a")

    with pytest.raises(StepFailed, match=r"NotInExecution: trx\(\) was called outside an execution at .*zart\.testing"):
        await write()
    with pytest.raises(NotInExecution):
        await zart.trx()


async def test_a_run_under_test_has_no_database_and_says_so() -> None:
    @zart_step("write")
    async def write() -> None:
        await note("a")

    @zart_durable("failing")
    async def failing() -> None:
        await write()

    with pytest.raises(zart.ExecutionFailed, match=r"zart\.testing\.Run has no database"):
        await zart.testing.Run(failing).result()
