"""The fence of a step's own transaction, `zart_trx_1`, against ticks, takeovers and cancels. One sentence each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.ticking import Checkpoint, Claim, Move, TickingWorker, start
from zart.model import Verb
from zart.store import executions, journal, transactions, workers
from zart.store.transactions import Fenced

KEY = 7
MINE, ANOTHERS, LOST = Fenced(True, True, True), Fenced(True, True, False), Fenced(True, False, False)


@pytest_asyncio.fixture
async def worker(database: Database, connection: asyncpg.Connection) -> TickingWorker:
    """A worker that has claimed the execution "e"."""
    lane = await start(database, connection, "e")
    made = TickingWorker(connection, database.schema, database.bucket, [lane])
    await made.register()
    return made


@pytest_asyncio.fixture
async def claim(worker: TickingWorker) -> Claim:
    (made,) = await worker.claim()
    return made


@pytest_asyncio.fixture
async def conn(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose transaction has begun and is marked."""
    made = await database.connect()
    await made.transaction().start()
    await transactions.begin_trx(made, database.schema, 5)
    yield made
    made.terminate()


async def fence(conn: asyncpg.Connection, of: TickingWorker, claim: Claim, **other: Any) -> Fenced:
    """The fence, with the claim's own values unless others are given."""
    values: dict[str, Any] = {"worker": of.id, "id": claim.id, "epoch": claim.epoch, "result": b"1"} | other
    return await transactions.trx(
        conn, of.schema, of.bucket, **values, key=KEY, name="step", attempts=3, seconds=0.5, timeout=10
    )


async def waiting(connection: asyncpg.Connection, other: asyncpg.Connection) -> None:
    """Returns when the other connection waits for a lock."""
    text = "select count(*) from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'"

    async def waits() -> bool:
        return bool(await connection.fetchval(text, other.get_server_pid()))

    await eventually(waits)


async def stored(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "select id, run, epoch, kind, status, attempts, seconds, name, result::text from zart.zart_tasks"
    )
    return [tuple(row) for row in rows]


async def test_the_checkpoint_is_there_when_the_transaction_commits(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    assert await fence(conn, worker, claim) == MINE
    assert await stored(worker.connection) == []
    await conn.execute("commit")
    assert await stored(worker.connection) == [(claim.id, claim.run, claim.epoch, 1, 1, 3, 0.5, "step", "1")]


async def test_a_transaction_that_is_not_marked_is_left_alone(
    database: Database, worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await conn.execute("commit; begin")
    assert not (await fence(conn, worker, claim)).marked
    assert not (await fence(worker.connection, worker, claim)).marked
    await conn.execute("commit")
    assert await stored(worker.connection) == []


@pytest.mark.parametrize("wrong", ["worker", "epoch", "id"])
async def test_another_claim_is_not_held(
    wrong: str, worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    right = {"worker": worker.id, "epoch": claim.epoch, "id": claim.id}
    assert await fence(conn, worker, claim, **{wrong: right[wrong] + 1}) == LOST


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_a_claim_that_was_freed_is_not_held(
    isolation: str, worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await conn.execute(f"set transaction isolation level {isolation}")
    await workers.take_over_worker(worker.connection, worker.schema, worker.bucket, worker.id, proof=True, blame=[])
    assert await fence(conn, worker, claim) == LOST


async def test_a_dead_worker_holds_nothing_though_its_claim_is_not_freed_yet(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await worker.connection.execute("update zart.zart_workers set dead = true")
    assert await fence(conn, worker, claim) == LOST


async def test_an_old_snapshot_conflicts_with_a_claim_that_was_freed_since(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    """Nobody else has noticed: what it reads says that the claim stands."""
    await conn.execute("set transaction isolation level repeatable read")
    await conn.execute("select 1")
    await workers.take_over_worker(worker.connection, worker.schema, worker.bucket, worker.id, proof=True, blame=[])
    with pytest.raises(asyncpg.SerializationError):
        await fence(conn, worker, claim)


async def test_an_old_snapshot_conflicts_with_nothing_that_leaves_the_claim_alone(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await conn.execute("set transaction isolation level repeatable read")
    await conn.execute("select 1")
    place = worker.connection, worker.schema, worker.bucket
    await workers.renew_leases(*place, [worker.id], 7200)
    offered = await journal.offer_event(*place, "e", 11, "go", "1")
    assert (await fence(conn, worker, claim), offered.answer) == (MINE, "accepted")
    await conn.execute("commit")


@pytest.mark.parametrize("way", ["reregistered", "cancelled", "put off"])
async def test_an_old_snapshot_conflicts_however_the_claim_was_freed(
    way: str, worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await conn.execute("set transaction isolation level repeatable read")
    await conn.execute("select 1")
    place = worker.connection, worker.schema, worker.bucket
    if way == "cancelled":
        await executions.cancel(*place, "e")
    elif way == "put off":
        await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PUT_OFF, due=0)])
    else:
        await TickingWorker(*place, worker.lanes).register(old=worker.id)
    with pytest.raises(asyncpg.SerializationError):
        await fence(conn, worker, claim)


async def test_what_a_tick_has_stored_stands(worker: TickingWorker, claim: Claim, conn: asyncpg.Connection) -> None:
    await worker.tick([Checkpoint(claim.id, claim.epoch, KEY, result=b"2")])
    assert await fence(conn, worker, claim) == ANOTHERS
    await conn.execute("commit")
    assert [row[-1] for row in await stored(worker.connection)] == ["2"]


async def test_a_takeover_passes_a_claim_by_that_is_being_committed(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await fence(conn, worker, claim)
    take = (worker.connection, worker.schema, worker.bucket, worker.id)
    assert not (await workers.take_over_worker(*take, proof=True, blame=[])).gone
    await conn.execute("commit")
    freed = await workers.take_over_worker(*take, proof=True, blame=[])
    assert [one.id for one in freed.freed] == [claim.id]


async def test_a_tick_passes_an_ending_by_that_races_the_commit(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await fence(conn, worker, claim)
    ending = [Move(claim.id, claim.epoch, Verb.PUT_OFF, due=0)]
    assert not (await worker.tick(moves=ending)).applied
    await conn.execute("rollback")
    assert (await worker.tick(moves=ending)).applied == {claim.id}


async def test_asked_again_elsewhere_the_fence_waits_for_the_commit_under_way(
    database: Database, worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await fence(conn, worker, claim)
    other = await database.connect()
    await other.transaction().start()
    await transactions.begin_trx(other, database.schema, 5)
    asked = asyncio.create_task(fence(other, worker, claim))
    await waiting(worker.connection, other)
    await conn.execute("commit")
    assert await asked == ANOTHERS
    await other.close()


async def test_a_worker_that_begins_anew_waits_for_its_commit_and_keeps_the_claim(
    database: Database, worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    await fence(conn, worker, claim)
    other = await database.connect()
    heir = TickingWorker(other, worker.schema, worker.bucket, worker.lanes)
    held = asyncio.create_task(heir.register(old=worker.id))
    await waiting(worker.connection, other)
    await conn.execute("commit")
    assert [one.id for one in await held] == [claim.id]
    await other.close()


async def test_from_the_fence_on_the_server_limits_how_long_the_transaction_may_hang(
    worker: TickingWorker, claim: Claim, conn: asyncpg.Connection
) -> None:
    limits = "select current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')"
    assert tuple(await conn.fetchrow(limits) or ()) == ("0", "0")
    await fence(conn, worker, claim)
    assert tuple(await conn.fetchrow(limits) or ()) == ("5s", "5s")
    await conn.execute("commit")
    assert tuple(await conn.fetchrow(limits) or ()) == ("0", "0")
