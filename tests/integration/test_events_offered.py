"""Events from their senders' side: what becomes of one, whoever offers it, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.endings import Checkpoint, Child, Move, end_all, ready_worker
from tests.support.eventually import eventually
from zart.cli.main import answer
from zart.codec import bucket_of, step_key
from zart.errors import ExecutionNotFound, InvalidArgument, SerializationError, ZartError
from zart.model import EventAnswer, KeySpace, Kind, Outcome, StoredStatus, Verb
from zart.scheduler import PostgresScheduler
from zart.store import executions, queue, workers

ACCEPTED, ALREADY_OFFERED, FINISHED = EventAnswer.ACCEPTED, EventAnswer.ALREADY_OFFERED, EventAnswer.FINISHED

LONGEST = "n" * 512


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    """A scheduler; the execution `a` has been started."""
    async with PostgresScheduler.connect(database.dsn) as made:
        await made.start("a", "task", 1)
        yield made


async def events_of(scheduler: PostgresScheduler, execution_id: str = "a") -> dict[str, Any]:
    """Payloads by name; those that did not come in time are left out."""
    steps = await scheduler.history(execution_id)
    return {step.name: step.result for step in steps if step.kind == "event" and step.status == "completed"}


async def wakes(connection: asyncpg.Connection) -> int:
    counted: int = await connection.fetchval("select sum(wakes) from zart.zart_queue")
    return counted


# -- what becomes of it


async def test_an_event_that_comes_first_is_there_when_the_execution_is_claimed(
    scheduler: PostgresScheduler, database: Database
) -> None:
    assert await scheduler.offer_event("a", "go", {"by": "x"}) is ACCEPTED
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    [claim] = await worker.claim()
    place = worker.connection, worker.schema, worker.bucket
    counters, row = await queue.load_journal(*place, [claim.id], [claim.run], worker.id)
    assert (counters["wakes"], row["step_key"]) == (1, step_key(KeySpace.EVENT, "go"))
    assert (row["kind"], row["status"], row["name"], row["result"]) == (Kind.EVENT, 1, "go", '{"by":"x"}')
    await worker.connection.close()


async def test_an_event_makes_a_parked_execution_ready(scheduler: PostgresScheduler, database: Database) -> None:
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    [claim] = await worker.claim()
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK, due=3600.0)])
    assert await worker.claim() == []
    assert await scheduler.offer_event("a", "go") is ACCEPTED
    assert [again.id for again in await worker.claim()] == [claim.id]
    await worker.connection.close()


async def test_an_event_that_is_not_the_first_wakes_nobody(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.offer_event("a", "go")
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    [claim] = await worker.claim()
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK, seen=claim.wakes, due=3600.0)])
    assert await scheduler.offer_event("a", "go") is ALREADY_OFFERED
    assert await worker.claim() == []
    await worker.connection.close()


async def test_of_many_senders_at_once_one_is_accepted_and_its_event_is_the_one(scheduler: PostgresScheduler) -> None:
    answers = await asyncio.gather(*(scheduler.offer_event("a", "go", number) for number in range(50)))
    assert answers.count(ACCEPTED) == 1
    assert answers.count(ALREADY_OFFERED) == 49
    assert await events_of(scheduler) == {"go": answers.index(ACCEPTED)}


async def test_an_event_after_its_wait_timed_out_is_told_so_and_changes_nothing(
    scheduler: PostgresScheduler, database: Database
) -> None:
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    [claim] = await worker.claim()
    key = step_key(KeySpace.EVENT, "go")
    await worker.tick([Checkpoint(claim.id, claim.epoch, key, Kind.EVENT, Outcome.TIMED_OUT, name="go", result=None)])
    assert await scheduler.offer_event("a", "go", 1) is ALREADY_OFFERED
    [step] = await scheduler.history("a")
    assert (step.name, step.status, step.result) == ("go", "timed_out", None)
    await worker.connection.close()


@pytest.mark.parametrize("status", [StoredStatus.COMPLETED, StoredStatus.FAILED])
async def test_an_execution_that_has_ended_takes_no_event(
    scheduler: PostgresScheduler, database: Database, status: StoredStatus
) -> None:
    await end_all(database, status=status)
    assert await scheduler.offer_event("a", "go", 1) is FINISHED
    assert await scheduler.history("a") == []


async def test_a_cancelled_execution_takes_no_event_and_keeps_those_it_has(scheduler: PostgresScheduler) -> None:
    await scheduler.offer_event("a", "go", 1)
    await scheduler.cancel("a")
    assert await scheduler.offer_event("a", "go", 2) is FINISHED
    assert await events_of(scheduler) == {"go": 1}


async def test_a_restarted_execution_waits_for_its_events_anew(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    await scheduler.offer_event("a", "go", 1)
    await scheduler.cancel("a")
    assert await executions.restart(connection, database.schema, bucket_of("a", database.buckets), "a")
    assert await scheduler.offer_event("a", "go", 2) is ACCEPTED
    assert await events_of(scheduler) == {"go": 2}


@pytest.mark.parametrize("execution_id", ["b", "A", "a ", "%", "_", "zart:1/1/child", "'; drop table x; --"])
async def test_an_execution_that_there_is_not_is_not_found(scheduler: PostgresScheduler, execution_id: str) -> None:
    with pytest.raises(ExecutionNotFound) as raised:
        await scheduler.offer_event(execution_id, "go")
    assert repr(execution_id) in str(raised.value)


async def test_a_child_takes_events_under_its_derived_id(scheduler: PostgresScheduler, database: Database) -> None:
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    [claim] = await worker.claim()
    child = Child(claim.id, claim.run, 7, "child", "task", worker.lanes[0])
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.HOLD)], children=[child])
    child_id = f"zart:{claim.id}/1/child"
    assert await scheduler.offer_event(child_id, "go", 1) is ACCEPTED
    assert await events_of(scheduler, child_id) == {"go": 1}
    assert await events_of(scheduler) == {}
    await worker.connection.close()


# -- names and payloads


@pytest.mark.parametrize("name", ["%", "_", "go%", "'", '"', "\\", "a\nb", "späť ✓", " ", "$1", "zart:", LONGEST])
async def test_a_name_is_taken_as_it_is(scheduler: PostgresScheduler, name: str) -> None:
    await scheduler.offer_event("a", "go", "another")
    assert await scheduler.offer_event("a", name, 1) is ACCEPTED
    assert await scheduler.offer_event("a", name, 2) is ALREADY_OFFERED
    assert await events_of(scheduler) == {"go": "another", name: 1}


async def test_an_event_named_like_a_step_is_apart_from_it(scheduler: PostgresScheduler, database: Database) -> None:
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    [claim] = await worker.claim()
    await worker.tick([Checkpoint(claim.id, claim.epoch, step_key(KeySpace.STEP, "go"), name="go", result=b'"step"')])
    assert await scheduler.offer_event("a", "go", "event") is ACCEPTED
    assert [(step.kind, step.result) for step in await scheduler.history("a")] == [("step", "step"), ("event", "event")]
    await worker.connection.close()


@pytest.mark.parametrize(
    "payload", [None, True, 0, -1.5, "", "'%_\"", [], {"k": [1, {"z": None, "a": 2}]}, "x" * 10**6]
)
async def test_a_payload_is_kept_as_it_is(scheduler: PostgresScheduler, payload: Any) -> None:
    assert await scheduler.offer_event("a", "go", payload) is ACCEPTED
    assert await events_of(scheduler) == {"go": payload}


@pytest.mark.parametrize(
    ("execution_id", "name", "told"),
    [
        ("a", "", "the name of the event must not be empty"),
        ("a", "n" * 10_000, "the name of the event has 10,000 bytes, at most 512 are allowed"),
        ("a", "g\0o", "the name of the event must not hold a NUL character"),
        ("a", "\ud800", "the name of the event must not hold half of a surrogate pair"),
        ("a", None, "the name of the event must be text, got None"),
        ("a", 7, "the name of the event must be text, got 7"),
        ("a", b"go", "the name of the event must be text"),
        ("", "go", "execution_id must not be empty"),
        ("i" * 10_000, "go", "execution_id has 10,000 bytes, at most 512 are allowed"),
        ("a\0", "go", "execution_id must not hold a NUL character"),
        ("\udfff", "go", "execution_id must not hold half of a surrogate pair"),
        (None, "go", "execution_id must be text"),
        (7, "go", "execution_id must be text"),
    ],
    ids=lambda value: repr(value)[:12],
)
async def test_an_id_or_name_that_cannot_be_used_is_refused_and_nothing_is_stored(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, execution_id: Any, name: Any, told: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await scheduler.offer_event(execution_id, name, 1)
    assert told in str(raised.value)
    assert len(str(raised.value)) < 300
    assert await wakes(connection) == 0


@dataclass
class Approval:
    by: str
    amount: Decimal


async def test_a_payload_of_a_dataclass_is_kept_as_its_type_says(scheduler: PostgresScheduler) -> None:
    assert await scheduler.offer_event("a", "go", Approval("ann", Decimal("1.50"))) is ACCEPTED
    assert await events_of(scheduler) == {"go": {"by": "ann", "amount": "1.50"}}


async def test_a_key_that_zart_itself_writes_is_refused(scheduler: PostgresScheduler) -> None:
    """Read as what it stands for, another value would come out of the wait."""
    with pytest.raises(SerializationError, match=r"payload of event 'go' .* the key '\$zart' is zart's own"):
        await scheduler.offer_event("a", "go", {"$zart": "dict", "value": {}})


async def test_a_payload_has_a_largest_size(scheduler: PostgresScheduler, connection: asyncpg.Connection) -> None:
    with pytest.raises(SerializationError, match=r"payload of event 'go' .* more than the 67,108,864 that are allowed"):
        await scheduler.offer_event("a", "go", "x" * (64 * 1024 * 1024))
    assert await wakes(connection) == 0


async def test_an_accepted_event_tells_idle_workers(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    """Also in the caller's transaction, at its commit."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await database.connect()
    await listener.add_listener(workers.channel(database.schema), lambda *told: heard.put_nowait(told[2]))
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    await workers.mark_idle(worker.connection, database.schema, worker.bucket, [worker.id], True)
    await scheduler.offer_event("a", "go")
    await asyncio.wait_for(heard.get(), 5)
    async with connection.transaction():
        await scheduler.offer_event("a", "more", conn=connection)
        assert heard.empty()
    await asyncio.wait_for(heard.get(), 5)
    await worker.connection.close()
    await listener.close()


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    "payload",
    [
        float("nan"),
        float("inf"),
        2**64,
        "\0",
        "\ud800",
        {"k": "\0"},
        {1: "one"},
        {1, 2},
        object(),
        [Decimal(1)],
        [b"bytes"],
        _circle(),
    ],
    ids=lambda value: "circle" if isinstance(value, list) and value == [value] else repr(value)[:12],
)
async def test_a_payload_that_cannot_be_kept_is_refused_and_nothing_is_stored(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, payload: Any
) -> None:
    with pytest.raises(SerializationError, match=r"^payload of event 'go' of execution 'a' at "):
        await scheduler.offer_event("a", "go", payload)
    assert await wakes(connection) == 0
    assert await scheduler.offer_event("a", "go", 1) is ACCEPTED


# -- in a caller's transaction


async def test_an_event_in_a_transaction_is_there_when_it_commits(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        assert await scheduler.offer_event("a", "go", 1, conn=connection) is ACCEPTED
        assert await scheduler.offer_event("a", "go", 2, conn=connection) is ALREADY_OFFERED
        assert await events_of(scheduler) == {}
    assert await events_of(scheduler) == {"go": 1}


async def test_an_event_in_a_transaction_that_rolls_back_was_never_offered(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    assert await scheduler.offer_event("a", "go", 1, conn=connection) is ACCEPTED
    await transaction.rollback()
    assert await wakes(connection) == 0
    assert await scheduler.offer_event("a", "go", 2) is ACCEPTED
    assert await events_of(scheduler) == {"go": 2}


async def test_an_event_and_the_start_of_its_execution_can_be_one_transaction(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        await scheduler.start("b", "task", 1, conn=connection)
        assert await scheduler.offer_event("b", "go", 1, conn=connection) is ACCEPTED
        with pytest.raises(ExecutionNotFound):
            await scheduler.offer_event("b", "go", 2)
    assert await events_of(scheduler, "b") == {"go": 1}


@pytest.mark.parametrize(("commits", "second"), [(True, ALREADY_OFFERED), (False, ACCEPTED)])
async def test_a_sender_is_answered_when_an_earlier_ones_transaction_has_ended(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, commits: bool, second: EventAnswer
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await scheduler.offer_event("a", "go", 1, conn=connection)
    offer = asyncio.create_task(scheduler.offer_event("a", "go", 2))
    await eventually(
        lambda: connection.fetchval(
            "select count(*) from pg_stat_activity where pg_backend_pid() = any(pg_blocking_pids(pid))"
        )
    )
    assert not offer.done()
    await (transaction.commit() if commits else transaction.rollback())
    assert await offer is second
    assert await events_of(scheduler) == {"go": 1 if commits else 2}


async def test_a_connection_of_a_pool_can_be_joined(scheduler: PostgresScheduler, database: Database) -> None:
    async with (
        asyncpg.create_pool(database.dsn, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        assert await scheduler.offer_event("a", "go", 1, conn=connection) is ACCEPTED
    assert await events_of(scheduler) == {"go": 1}


async def test_a_connection_that_cannot_be_joined_is_refused_and_nothing_is_stored(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    with pytest.raises(InvalidArgument, match="must be in a transaction"):
        await scheduler.offer_event("a", "go", 1, conn=connection)
    with pytest.raises(InvalidArgument, match="must be an asyncpg connection, got str"):
        await scheduler.offer_event("a", "go", 1, conn="postgresql://")  # type: ignore[arg-type]
    assert await wakes(connection) == 0


@pytest.mark.parametrize(
    ("execution_id", "name", "payload"),
    [("a", "g\0o", 1), ("a\0", "go", 1), ("a", "go", float("nan")), ("nobody", "go", 1)],
    ids=["name", "id", "payload", "unknown"],
)
async def test_a_refused_event_leaves_the_callers_transaction_usable(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, execution_id: str, name: str, payload: Any
) -> None:
    async with connection.transaction():
        with pytest.raises(ZartError):
            await scheduler.offer_event(execution_id, name, payload, conn=connection)
        assert await scheduler.offer_event("a", "go", 1, conn=connection) is ACCEPTED
    assert await events_of(scheduler) == {"go": 1}


# -- on the command line


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


Zart = Callable[..., Done]


@pytest.fixture
def zart(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Zart:
    """Runs `zart` on the test's database; the execution `one` has been started."""
    monkeypatch.setenv("DATABASE_URL", database.dsn)

    def run(*arguments: str) -> Done:
        return Done(answer(arguments), *capsys.readouterr())

    assert run("start", "task", "--id", "one").code == 0
    return run


def kept(zart: Zart) -> dict[str, Any]:
    return {step["name"]: step["result"] for step in json.loads(zart("history", "one", "--json").out)}


def test_an_event_on_the_command_line_is_kept(zart: Zart) -> None:
    done = zart("event", "one", "go", "--data", '{"by": "x"}')
    assert (done.code, done.out, done.err) == (0, "one has the event go\n", "")
    assert kept(zart) == {"go": {"by": "x"}}


def test_an_event_without_data_has_the_payload_null(zart: Zart) -> None:
    assert zart("event", "one", "go").code == 0
    assert kept(zart) == {"go": None}


def test_a_second_event_exits_with_1_and_says_why(zart: Zart) -> None:
    zart("event", "one", "go", "--data", "1")
    done = zart("event", "one", "go", "--data", "2")
    assert (done.code, done.out) == (1, "")
    assert done.err == "zart: one has the event go already, or waited too long for it\n"
    assert kept(zart) == {"go": 1}


def test_an_event_for_an_execution_that_has_ended_exits_with_1_and_says_why(zart: Zart) -> None:
    zart("cancel", "one")
    done = zart("event", "one", "go")
    assert (done.code, done.out, done.err) == (1, "", "zart: one had ended already; it takes no more events\n")


def test_programs_are_told_each_answer(zart: Zart) -> None:
    told = [zart("event", "one", "go", "--json") for _ in range(2)]
    zart("cancel", "one")
    told.append(zart("event", "one", "go", "--json"))
    assert [json.loads(done.out) for done in told] == [
        {"execution_id": "one", "answer": each} for each in ("accepted", "already_offered", "finished")
    ]
    assert [done.code for done in told] == [0, 1, 1]


def test_an_event_for_an_unknown_execution_exits_with_2(zart: Zart) -> None:
    done = zart("event", "nobody", "go", "--json")
    assert (done.code, done.out) == (2, "")
    assert "'nobody'" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["one"],
        ["one", ""],
        ["one", "n" * 10_000],
        ["", "go"],
        ["one", "go", "more"],
        ["one", "go", "--data"],
        ["one", "go", "--data", "{bad"],
        ["one", "go", "--data", "NaN"],
        ["one", "go", "--data", '"\\u0000"'],
        ["one", "go", "--data", '"\\ud800"'],
        ["one", "go", "--data", "99999999999999999999"],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_an_event_that_cannot_be_used_is_one_line_and_nothing_is_stored(zart: Zart, arguments: list[str]) -> None:
    done = zart("event", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert len(done.err) < 400
    assert kept(zart) == {}


@pytest.mark.parametrize("name", ["%", "_", "'", '"', "späť"])
def test_a_name_on_the_command_line_is_taken_as_it_is(zart: Zart, name: str) -> None:
    assert zart("event", "one", name, "--data", "1").out == f"one has the event {name}\n"
    assert kept(zart) == {name: 1}


def test_a_name_cannot_steer_the_terminal(zart: Zart) -> None:
    assert zart("event", "one", "\x1b[2Jgo").out == "one has the event  [2Jgo\n"


def test_the_help_says_what_the_exit_code_means(zart: Zart) -> None:
    shown = zart("event", "--help").out
    assert "Exit code 1" in shown
    assert "--data" in shown
