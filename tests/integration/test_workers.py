"""Registration, leases, takeover and hints, as the tables have them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.ticking import Checkpoint, Child, Claim, Move, TickingWorker, start
from zart.model import ExecutionStatus, StoredStatus, Verb
from zart.store import executions, journal, queue, workers


@pytest_asyncio.fixture
async def worker(database: Database, connection: asyncpg.Connection) -> TickingWorker:
    """A registered worker; three executions, `a`, `b` and `c`, wait for it."""
    lane = await start(database, connection, "a", "b", "c")
    made = TickingWorker(connection, database.schema, database.bucket, [lane])
    await made.register()
    return made


async def heir_of(worker: TickingWorker, database: Database) -> TickingWorker:
    """A worker to be, on a connection of its own."""
    return TickingWorker(await database.connect(), worker.schema, worker.bucket, worker.lanes)


async def take_over(worker: TickingWorker, blame: list[int] | None = None, *, proof: bool = True) -> workers.TakeOver:
    return await workers.take_over_worker(
        worker.connection, worker.schema, worker.bucket, worker.id, proof=proof, blame=blame
    )


async def claimed_apart(worker: TickingWorker, database: Database) -> tuple[TickingWorker, Claim]:
    """Another worker, which has claimed an execution that was set apart."""
    [guilty] = await worker.claim(1)
    await take_over(worker, [guilty.id])
    other = await heir_of(worker, database)
    await other.register()
    [claim] = (await other.tick(claim=1, lanes=[-worker.lanes[0]])).claims
    return other, claim


async def deaths_and_lane(worker: TickingWorker, id: int) -> tuple[int, int]:
    row = await worker.connection.fetchrow("select crashes, lane from zart.zart_queue where id = $1", id)
    assert row is not None
    return row["crashes"], row["lane"]


class TestRegistration:
    async def test_an_heir_is_told_every_claim_however_often_it_asks(
        self, database: Database, worker: TickingWorker
    ) -> None:
        claims = await worker.claim(2)
        heir = await heir_of(worker, database)
        for _ in range(2):
            told = await heir.register(old=worker.id)
            assert {(each.id, each.epoch) for each in told} == {(each.id, each.epoch) for each in claims}
        answer = await heir.tick([Checkpoint(claims[0].id, claims[0].epoch, 5)])
        assert answer.checkpointed == 1

    async def test_claims_that_are_locked_stay_for_a_takeover(self, database: Database, worker: TickingWorker) -> None:
        await worker.claim(2)
        user = await database.connect()
        heir = await heir_of(worker, database)
        async with user.transaction():
            await journal.offer_event(user, worker.schema, worker.bucket, "a", 5, "event", "1")
            assert len(await heir.register(old=worker.id)) == 1
        done = await take_over(worker)
        assert done.gone
        assert len(done.freed) == 1

    async def test_a_former_identity_that_does_not_let_go_is_evicted(
        self, database: Database, worker: TickingWorker
    ) -> None:
        stuck = await heir_of(worker, database)
        await stuck.register()
        transaction = stuck.connection.transaction()
        await transaction.start()
        claims = await stuck.claim(2)
        heir = await heir_of(worker, database)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await heir.register(old=stuck.id)
        assert (await take_over(stuck_seen_by(stuck, worker))).busy
        assert await workers.evict_backend(worker.connection, worker.schema, worker.bucket, stuck.id)
        told = await heir.register(old=stuck.id)
        assert told == [], f"the tick with {claims} was rolled back"
        assert not await workers.evict_backend(worker.connection, worker.schema, worker.bucket, stuck.id)


def stuck_seen_by(stuck: TickingWorker, observer: TickingWorker) -> TickingWorker:
    """The worker of that id, on another's connection."""
    return TickingWorker(observer.connection, stuck.schema, stuck.bucket, stuck.lanes, stuck.id)


class TestLeases:
    async def test_an_expired_lease_that_nobody_took_over_lives_again(self, worker: TickingWorker) -> None:
        await worker.connection.execute("update zart.zart_workers set lease_until = now() - interval '1 s'")
        [expired] = await workers.expired_workers(worker.connection, worker.schema, [worker.bucket])
        assert (expired.id, expired.bucket) == (worker.id, worker.bucket)
        renewed = await workers.renew_leases(worker.connection, worker.schema, worker.bucket, [worker.id, 5], 60.0)
        assert renewed == {worker.id}
        assert await workers.expired_workers(worker.connection, worker.schema, [worker.bucket]) == []
        assert len(await worker.claim()) == 1

    async def test_a_worker_taken_over_is_not_renewed(self, worker: TickingWorker) -> None:
        await take_over(worker)
        assert await workers.renew_leases(worker.connection, worker.schema, worker.bucket, [worker.id], 60.0) == set()

    async def test_a_live_lease_is_not_taken_without_proof(self, worker: TickingWorker) -> None:
        await worker.claim(3)
        refused = await take_over(worker, proof=False)
        assert (refused.gone, refused.busy, refused.freed) == (False, True, ())
        await worker.connection.execute("update zart.zart_workers set lease_until = now() - interval '1 s'")
        assert (await take_over(worker, proof=False)).gone

    async def test_renewal_does_not_wait_for_a_tick(self, database: Database, worker: TickingWorker) -> None:
        control = await database.connect()
        async with worker.connection.transaction():
            await worker.claim(3)
            renewed = await workers.renew_leases(control, worker.schema, worker.bucket, [worker.id], 60.0)
        assert renewed == {worker.id}


class TestTakeover:
    async def test_claims_are_ready_for_others_at_once(self, database: Database, worker: TickingWorker) -> None:
        claims = await worker.claim(3)
        done = await take_over(worker, [])
        assert done.gone
        assert {each.id for each in done.freed} == {each.id for each in claims}
        other = await heir_of(worker, database)
        await other.register()
        assert {(each.id, each.epoch, each.crashes) for each in await other.claim(3)} == {
            (each.id, 2, 0) for each in claims
        }

    async def test_only_the_blamed_one_is_set_apart(self, database: Database, worker: TickingWorker) -> None:
        claims = await worker.claim(3)
        guilty = claims[1].id
        done = await take_over(worker, [guilty])
        assert {each.id: each.crashes for each in done.freed} == {each.id: int(each.id == guilty) for each in claims}
        other = await heir_of(worker, database)
        await other.register()
        assert guilty not in {each.id for each in await other.claim(3)}
        assert await queue.ready_lanes(worker.connection, worker.schema, worker.bucket, ["task"], None) == [
            -worker.lanes[0]
        ]
        apart = await other.tick(claim=1, lanes=[-worker.lanes[0]])
        assert [each.id for each in apart.claims] == [guilty]

    async def test_without_a_culprit_all_are_set_apart_from_the_second_time_on(
        self, database: Database, worker: TickingWorker
    ) -> None:
        for apart in (0, 3):
            other = await heir_of(worker, database)
            await other.register()
            await other.claim(3)
            done = await take_over(stuck_seen_by(other, worker), None)
            assert ({each.crashes for each in done.freed}, len(done.apart)) == ({1}, apart)
        assert await queue.ready_lanes(worker.connection, worker.schema, worker.bucket, ["task"], None) == [
            -worker.lanes[0]
        ]

    @pytest.mark.parametrize("blame_is_known", [True, False])
    async def test_a_death_apart_counts_once(
        self, database: Database, worker: TickingWorker, blame_is_known: bool
    ) -> None:
        [guilty] = await worker.claim(1)
        await take_over(worker, [guilty.id])
        for crashes in (2, 3, 4):
            other = await heir_of(worker, database)
            await other.register()
            await other.tick(claim=1, lanes=[-worker.lanes[0]])
            done = await take_over(stuck_seen_by(other, worker), [guilty.id] if blame_is_known else None)
            assert [(each.id, each.crashes) for each in done.freed] == [(guilty.id, crashes)]

    @pytest.mark.parametrize("verb", [Verb.PARK, Verb.RETRY, Verb.HANDLE])
    async def test_a_completed_turn_brings_back_and_forgets_the_deaths(
        self, database: Database, worker: TickingWorker, verb: Verb
    ) -> None:
        other, claim = await claimed_apart(worker, database)
        await other.tick(moves=[Move(claim.id, claim.epoch, verb, due=0.0, error=b"{}")])
        assert await deaths_and_lane(worker, claim.id) == (0, worker.lanes[0])

    async def test_what_is_handed_back_stays_apart(self, database: Database, worker: TickingWorker) -> None:
        other, claim = await claimed_apart(worker, database)
        await other.tick(moves=[Move(claim.id, claim.epoch, Verb.PUT_OFF, due=0.0)])
        assert await deaths_and_lane(worker, claim.id) == (1, -worker.lanes[0])

    async def test_how_it_died_is_the_error_of_what_is_set_apart(
        self, database: Database, worker: TickingWorker
    ) -> None:
        claims = await worker.claim(2)
        done = await workers.take_over_worker(
            worker.connection,
            worker.schema,
            worker.bucket,
            worker.id,
            proof=True,
            blame=[claims[0].id],
            death='{"how": "signal SIGSEGV"}',
        )
        rows = await worker.connection.fetch(
            "select id, execution_id, error::text from zart.zart_executions where error is not null"
        )
        assert [(row["id"], row["error"]) for row in rows] == [(claims[0].id, '{"how": "signal SIGSEGV"}')]
        assert done.apart == (rows[0]["execution_id"],)

    async def test_an_unknown_worker_is_gone(self, worker: TickingWorker) -> None:
        stranger = TickingWorker(worker.connection, worker.schema, worker.bucket, worker.lanes)
        assert (await take_over(stranger)).gone


class TestCancel:
    async def test_the_whole_tree_is_cancelled_and_its_holders_named(self, worker: TickingWorker) -> None:
        parent = next(each for each in await worker.claim(3) if each.id == 1)
        children = [Child(parent.id, 1, key, f"child {key}", "task", worker.lanes[0]) for key in (1, 2)]
        await worker.tick(moves=[Move(parent.id, 1, Verb.HOLD)], children=children)
        [child, _] = await worker.claim(2)
        grandchild = Child(child.id, 1, 1, "grandchild", "task", worker.lanes[0])
        await worker.tick(moves=[Move(child.id, 1, Verb.HOLD)], children=[grandchild])
        done = await executions.cancel(worker.connection, worker.schema, worker.bucket, "a")
        assert done.what == "cancelled"
        assert done.workers == {worker.id}
        counts = await executions.count_by_status(worker.connection, worker.schema, [worker.bucket])
        assert counts == {ExecutionStatus.CANCELLED: 4, ExecutionStatus.RUNNING: 2}

    async def test_ended_and_unknown_executions_are_told_apart(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.tick(moves=[Move(claim.id, 1, Verb.FINISH, output=b"1")])
        for execution_id, answer in [("a", "already"), ("unknown", "unknown")]:
            done = await executions.cancel(worker.connection, worker.schema, worker.bucket, execution_id)
            assert done.what == answer
        record = await executions.status(worker.connection, worker.schema, worker.bucket, "a")
        assert record is not None
        assert record.status is ExecutionStatus.COMPLETED

    async def test_a_cancelled_child_wakes_its_parent(self, worker: TickingWorker) -> None:
        parent = next(each for each in await worker.claim(3) if each.id == 1)
        child = Child(parent.id, 1, 7, "child", "task", worker.lanes[0])
        await worker.tick(moves=[Move(parent.id, 1, Verb.PARK, done_at=1)], children=[child])
        await executions.cancel(worker.connection, worker.schema, worker.bucket, f"zart:{parent.id}/1/child")
        [again] = await worker.claim()
        assert (again.id, again.done) == (parent.id, 1)
        [kept] = await queue.read_checkpoints(worker.connection, worker.schema, worker.bucket, [parent.id], [1], [7])
        assert kept["status"] == StoredStatus.CANCELLED


class TestSignals:
    async def test_those_of_an_ended_parent_are_dropped(self, worker: TickingWorker) -> None:
        await worker.connection.execute(
            "insert into zart.zart_signals(id, run, n, bucket) values (999, 1, 1, $1)", worker.bucket
        )
        assert await journal.deliver_signals(worker.connection, worker.schema, worker.bucket) == (1, 1)
        assert await journal.deliver_signals(worker.connection, worker.schema, worker.bucket) == (0, 0)


class TestHints:
    async def test_a_hint_is_sent_only_to_idle_workers_that_serve_the_work(
        self, database: Database, worker: TickingWorker
    ) -> None:
        heard: list[str] = []
        listener = await database.connect()
        await listener.add_listener(workers.channel(worker.schema), lambda *told: heard.append(told[2]))

        async def hint(task_name: str | None = "task") -> bool:
            return await workers.hint(worker.connection, worker.schema, worker.bucket, "default", task_name)

        async def mark(idle: bool) -> set[int]:
            return await workers.mark_idle(worker.connection, worker.schema, worker.bucket, [worker.id], idle)

        assert not await hint()
        assert await mark(True) == {worker.id}
        assert not await hint("unserved")
        assert heard == []
        assert await hint()
        await eventually(lambda: heard == [workers.channel(worker.schema)])
        assert await hint(None)
        await mark(False)
        assert not await hint()

    async def test_schemas_do_not_hear_each_other(self, database: Database) -> None:
        assert workers.channel("zart") != workers.channel("other")

    async def test_marking_does_not_wait_for_a_locked_worker(self, database: Database, worker: TickingWorker) -> None:
        locker = await database.connect()
        async with locker.transaction():
            await locker.execute("select from zart.zart_workers for update")
            marked = workers.mark_idle(worker.connection, worker.schema, worker.bucket, [worker.id], True)
            assert await asyncio.wait_for(marked, 10) == set()
