"""What one tick does to the tables."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.ticking import Checkpoint, Child, Claim, Move, TickingWorker, start
from zart.engine.handler import FAILURE_KEY, FAILURE_NAME
from zart.model import ExecutionStatus, Kind, Outcome, StoredStatus, Verb
from zart.store import executions, journal, queue


@pytest_asyncio.fixture
async def worker(database: Database, connection: asyncpg.Connection) -> TickingWorker:
    """A registered worker; three executions, `a`, `b` and `c`, wait for it."""
    lane = await start(database, connection, "a", "b", "c")
    made = TickingWorker(connection, database.schema, database.bucket, [lane])
    await made.register()
    return made


async def journal_of(worker: TickingWorker, claim: Claim) -> list[asyncpg.Record]:
    return await queue.load_journal(worker.connection, worker.schema, worker.bucket, [claim.id], [claim.run], worker.id)


async def only_child(worker: TickingWorker, parent: Claim, **terms: object) -> None:
    child = Child(parent.id, parent.run, 7, "child", "task", worker.lanes[0], **terms)  # type: ignore[arg-type]
    await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.HOLD)], children=[child])


class TestCheckpoints:
    async def test_they_are_kept_with_everything_about_the_step(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        sent = Checkpoint(
            claim.id, claim.epoch, -5, Kind.STEP, Outcome.FAILED, 3, 60.0, 0.5, "späť", None, b'{"type":"E"}'
        )
        assert (await worker.tick([sent])).checkpointed == 1
        counters, kept = await journal_of(worker, claim)
        assert (counters["what"], counters["epoch"], counters["wakes"], counters["done"]) == ("counters", 1, 0, 0)
        assert 59 < kept["due_in"] <= 60
        told = ("step_key", "kind", "status", "attempts", "seconds", "name", "result", "error", "epoch")
        assert tuple(kept[name] for name in told) == (-5, 1, 2, 3, 0.5, "späť", None, '{"type":"E"}', 1)

    async def test_a_failed_try_is_kept_apart_and_counted(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        tried = Checkpoint(claim.id, claim.epoch, 5, Kind.ATTEMPT, Outcome.FAILED, 2, 9.0, 4.0, "s", None, b'"no"')
        assert (await worker.tick([tried, Checkpoint(claim.id, claim.epoch, 6)])).checkpointed == 2
        rows = await journal_of(worker, claim)
        [attempt] = [row for row in rows if row["what"] == "attempt"]
        assert (attempt["step_key"], attempt["attempts"], attempt["error"]) == (5, 2, '"no"')
        assert 8 < attempt["due_in"] <= 9
        assert 4 <= attempt["began_ago"] < 5

    async def test_a_key_is_written_once(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.tick([Checkpoint(claim.id, claim.epoch, 5, result=b"1")])
        answer = await worker.tick(
            [Checkpoint(claim.id, claim.epoch, 5, result=b"2"), Checkpoint(claim.id, claim.epoch, 6)]
        )
        assert answer.checkpointed == 1
        [kept] = await queue.read_checkpoints(
            worker.connection, worker.schema, worker.bucket, [claim.id], [claim.run], [5]
        )
        assert kept["result"] == "1"

    async def test_a_claim_of_another_epoch_or_worker_writes_nothing(
        self, database: Database, worker: TickingWorker
    ) -> None:
        [claim] = await worker.claim()
        other = TickingWorker(worker.connection, worker.schema, worker.bucket, worker.lanes)
        await other.register()
        stale = await worker.tick([Checkpoint(claim.id, claim.epoch + 1, 5)])
        foreign = await other.tick([Checkpoint(claim.id, claim.epoch, 5)])
        assert (stale.checkpointed, foreign.checkpointed) == (0, 0)

    @pytest.mark.parametrize("refused", [b"\x00", b"\xff", b"NaN", b"", b"[" * 100_000])
    async def test_one_refused_value_leaves_nothing_of_the_tick(self, worker: TickingWorker, refused: bytes) -> None:
        claims = await worker.claim(2)
        sent = [Checkpoint(claims[0].id, 1, 5), Checkpoint(claims[1].id, 1, 5, result=refused)]
        with pytest.raises((asyncpg.DataError, asyncpg.StatementTooComplexError)):
            await worker.tick(sent)
        assert len(await journal_of(worker, claims[0])) == 1

    @pytest.mark.parametrize("due", [float("nan"), float("inf"), 1e18, -1e18])
    async def test_no_due_makes_a_tick_fail(self, worker: TickingWorker, due: float) -> None:
        [claim] = await worker.claim()
        answer = await worker.tick(
            [Checkpoint(claim.id, claim.epoch, 5, due=due)], [Move(claim.id, claim.epoch, Verb.PARK, due=due)]
        )
        assert answer.checkpointed == 1
        assert answer.applied == {claim.id}


class TestFence:
    async def test_an_expired_lease_writes_but_does_not_claim(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.connection.execute("update zart.zart_workers set lease_until = now() - interval '1 s'")
        answer = await worker.tick([Checkpoint(claim.id, claim.epoch, 5)], claim=2)
        assert (answer.lease_live, answer.checkpointed, answer.claims) == (False, 1, ())

    async def test_an_unregistered_worker_is_fenced(self, worker: TickingWorker) -> None:
        stranger = TickingWorker(worker.connection, worker.schema, worker.bucket, worker.lanes)
        assert (await stranger.tick(claim=3)).fenced

    async def test_a_worker_is_fenced_in_buckets_it_does_not_serve(self, worker: TickingWorker) -> None:
        elsewhere = TickingWorker(worker.connection, worker.schema, worker.bucket + 1, worker.lanes, worker.id)
        assert (await elsewhere.tick(claim=3)).fenced


class TestClaims:
    async def test_each_has_what_a_turn_needs(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        assert (claim.run, claim.epoch, claim.wakes, claim.done, claim.crashes) == (1, 1, 0, 0, 0)
        assert 0 <= claim.waited < 60
        [record] = await queue.load_claims(worker.connection, worker.schema, worker.bucket, [claim.id])
        assert (record["execution_id"], record["task_name"], record["input"]) == ("a", "task", "null")
        assert (record["attempt"], record["max_retries"], record["deadline_in"], record["parent"]) == (0, 0, None, None)

    async def test_the_most_urgent_come_first_and_parked_ones_before_their_equals(self, worker: TickingWorker) -> None:
        [parked] = await worker.claim()
        await worker.tick(moves=[Move(parked.id, parked.epoch, Verb.PARK, due=0.0)])
        lanes = await queue.add_lanes(worker.connection, worker.schema, [("default", "task")])
        for execution_id, priority in [("later", 3), ("urgent", 0)]:
            await executions.start(
                worker.connection,
                worker.schema,
                worker.bucket,
                [execution_id],
                ["null"],
                task_name="task",
                lane=lanes["default", "task"],
                priority=priority,
            )
        order: list[str] = []
        for _ in range(5):
            [claim] = await worker.claim()
            [record] = await queue.load_claims(worker.connection, worker.schema, worker.bucket, [claim.id])
            order.append(record["execution_id"])
        assert order == ["urgent", "a", "b", "c", "later"]

    async def test_only_the_lanes_asked_for_are_claimed(self, worker: TickingWorker) -> None:
        assert (await worker.tick(claim=9, lanes=[worker.lanes[0] + 1, -worker.lanes[0]])).claims == ()

    async def test_lanes_are_served_in_the_order_given(self, worker: TickingWorker) -> None:
        lanes = await queue.add_lanes(worker.connection, worker.schema, [("default", "rare")])
        rare = lanes["default", "rare"]
        await executions.start(
            worker.connection, worker.schema, worker.bucket, ["r"], ["1"], task_name="rare", lane=rare, priority=9
        )
        [first] = (await worker.tick(claim=1, lanes=[rare, *worker.lanes])).claims
        [record] = await queue.load_claims(worker.connection, worker.schema, worker.bucket, [first.id])
        assert record["execution_id"] == "r"


class TestEndings:
    async def test_the_record_says_how_it_ended(self, database: Database, worker: TickingWorker) -> None:
        claims = {claim.id: claim for claim in await worker.claim(2)}
        done, failed = sorted(claims)
        answer = await worker.tick(
            moves=[
                Move(done, 1, Verb.FINISH, output=b'{"ok": true}'),
                Move(failed, 1, Verb.FINISH, status=StoredStatus.FAILED, error=b'{"type": "E"}'),
            ]
        )
        assert answer.applied == {done, failed}
        first = await executions.status(worker.connection, worker.schema, worker.bucket, "a")
        second = await executions.status(worker.connection, worker.schema, worker.bucket, "b")
        assert first is not None
        assert second is not None
        assert (first.status, first.output, first.error) == (ExecutionStatus.COMPLETED, {"ok": True}, None)
        assert (second.status, second.output, second.error) == (ExecutionStatus.FAILED, None, {"type": "E"})
        endings = await queue.read_endings(worker.connection, worker.schema, worker.bucket, [done])
        assert [(row["status"], row["epoch"], row["run"]) for row in endings] == [(1, 1, 1)]
        assert await queue.still_held(worker.connection, worker.schema, worker.bucket, worker.id, [done], [1]) == set()

    async def test_a_turn_put_off_is_ready_when_it_is_due(self, worker: TickingWorker) -> None:
        first, second = await worker.claim(2)
        await worker.tick(moves=[Move(first.id, 1, Verb.PUT_OFF), Move(second.id, 1, Verb.PUT_OFF, due=3600.0)])
        again = await worker.tick(claim=9)
        assert first.id in {claim.id for claim in again.claims}
        assert second.id not in {claim.id for claim in again.claims}

    async def test_a_turn_that_was_handed_back_leaves_it_set_apart(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.connection.execute("update zart.zart_queue set lane = -lane where id = $1", claim.id)
        await worker.tick(moves=[Move(claim.id, 1, Verb.PUT_OFF)])
        assert await worker.connection.fetchval("select lane < 0 from zart.zart_queue where id = $1", claim.id)

    async def test_a_completed_turn_ends_the_isolation_after_a_crash(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.connection.execute("update zart.zart_queue set lane = -lane where id = $1", claim.id)
        await worker.tick(moves=[Move(claim.id, 1, Verb.RETRY)])
        assert claim.id in {each.id for each in (await worker.tick(claim=9)).claims}


class TestChildren:
    async def test_a_child_is_an_execution_of_its_own_under_a_derived_id(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await worker.connection.execute(
            "update zart.zart_executions set deadline = now() + interval '10 s' where id = $1", parent.id
        )
        await only_child(worker, parent, input=b'{"x": 1}', max_retries=4, deadline=60.0, priority=0)
        [child] = await worker.claim()
        [record] = await queue.load_claims(worker.connection, worker.schema, worker.bucket, [child.id])
        assert record["execution_id"] == f"zart:{parent.id}/1/child"
        assert (record["input"], record["max_retries"], record["step_name"]) == ('{"x": 1}', 4, "child")
        assert record["parent"] == parent.id
        assert 9 < record["deadline_in"] <= 10, "a child ends no later than its parent"

    async def test_a_child_has_the_trace_context_of_its_parents_turn_or_of_its_parent(
        self, worker: TickingWorker
    ) -> None:
        [parent] = await worker.claim()
        await worker.connection.execute("update zart.zart_executions set traceparent = 'a' where id = $1", parent.id)
        children = [
            Child(parent.id, 1, key, f"{key}", "task", worker.lanes[0], traceparent=t)
            for key, t in ((7, "b"), (8, None))
        ]
        await worker.tick(moves=[Move(parent.id, 1, Verb.HOLD)], children=children)
        claims = await worker.claim(2)
        records = await queue.load_claims(worker.connection, worker.schema, worker.bucket, [one.id for one in claims])
        assert {record["step_name"]: record["traceparent"] for record in records} == {"7": "b", "8": "a"}

    async def test_a_child_that_is_sent_again_is_one_child(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await only_child(worker, parent)
        await only_child(worker, parent)
        assert (
            await worker.connection.fetchval("select count(*) from zart.zart_executions where parent is not null") == 1
        )

    async def test_its_outcome_is_a_checkpoint_of_its_parent(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await only_child(worker, parent, priority=0)
        [child] = await worker.claim()
        await worker.tick(moves=[Move(child.id, child.epoch, Verb.FINISH, output=b'"out"')])
        counters, kept = await journal_of(worker, parent)
        assert counters["done"] == 1
        assert (kept["step_key"], kept["kind"], kept["status"], kept["epoch"]) == (7, Kind.CHILD, 1, 0)
        assert (kept["name"], kept["result"], kept["attempts"]) == ("child", '"out"', 1)

    async def test_a_parent_held_by_the_same_worker_is_named_in_the_answer(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await only_child(worker, parent, priority=0)
        [child] = await worker.claim()
        await worker.connection.execute("update zart.zart_queue set done_at = 1 where id = $1", parent.id)
        answer = await worker.tick(moves=[Move(child.id, child.epoch, Verb.FINISH, output=b"1")])
        assert answer.woken == {parent.id}

    async def test_bodies_that_wait_in_memory_hear_by_looking(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await only_child(worker, parent, priority=0)
        [child] = await worker.claim()

        assert await worker.look([parent], done_at=1) == {}
        await worker.tick(moves=[Move(child.id, child.epoch, Verb.FINISH, output=b"1")])
        assert await worker.look([parent], done_at=1) == {parent.id: 0}


class TestNotedTurns:
    async def note(self, worker: TickingWorker, claim: Claim, *, epoch: int = 1, by: int = 0) -> str | None:
        """Note a turn's trace context; what the next turn would find."""
        place = worker.connection, worker.schema, worker.bucket
        await queue.note_turns(*place, by or worker.id, [claim.id], [epoch], ["00-a-b-01"])
        kept: str | None = (await journal_of(worker, claim))[0]["traceparent"]
        return kept

    async def test_a_turns_trace_context_is_kept_for_the_next_one(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        assert (await journal_of(worker, claim))[0]["traceparent"] is None
        assert await self.note(worker, claim) == "00-a-b-01"

    async def test_only_the_holder_of_the_claim_notes_it(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        assert await self.note(worker, claim, epoch=2) is None
        assert await self.note(worker, claim, by=worker.id + 1) is None

    async def test_it_waits_for_nobody(self, database: Database, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        other = await database.connect()
        async with asyncio.timeout(10), other.transaction():
            await other.execute("select from zart.zart_queue where id = $1 for update", claim.id)
            assert await self.note(worker, claim) is None
        await other.close()


class TestLook:
    async def test_it_tells_the_wakes_of_bodies_that_know_others(self, worker: TickingWorker) -> None:
        first, second = sorted(await worker.claim(2), key=lambda claim: claim.id)
        await journal.offer_event(worker.connection, worker.schema, worker.bucket, "a", 51, "event", "1")
        assert await worker.look([first, second], seen=0) == {first.id: 1}
        assert await worker.look([first, second], seen=1) == {second.id: 0}

    async def test_it_tells_the_wakes_in_any_case_when_none_are_known(self, worker: TickingWorker) -> None:
        first, second = await worker.claim(2)
        assert await worker.look([first, second], seen=-1) == {first.id: 0, second.id: 0}

    async def test_it_tells_that_a_claim_is_gone(self, worker: TickingWorker) -> None:
        cancelled, put_off, held = sorted(await worker.claim(3), key=lambda claim: claim.id)
        await executions.cancel(worker.connection, worker.schema, worker.bucket, "a")
        await worker.tick(moves=[Move(put_off.id, put_off.epoch, Verb.PUT_OFF)])
        [claimed_again] = await worker.claim()
        assert await worker.look([cancelled, put_off, held]) == {cancelled.id: None, put_off.id: None}
        assert await worker.look([claimed_again], seen=-1) == {put_off.id: 0}


class TestHandle:
    async def test_the_failure_is_kept_and_the_claim_is_free_in_one_tick(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.connection.execute("update zart.zart_queue set lane = -lane where id = $1", claim.id)
        await worker.tick(moves=[Move(claim.id, 1, Verb.HANDLE, error=b'"why"')])
        record = await executions.status(worker.connection, worker.schema, worker.bucket, "a")
        assert record is not None
        assert (record.status, record.attempt, record.error) == ("pending", 0, "why")
        claim = next(each for each in await worker.claim(3) if each.id == claim.id)
        assert claim.epoch == 2
        _, row = await journal_of(worker, claim)
        told = (row["step_key"], row["kind"], row["status"], row["name"], row["error"], row["epoch"])
        assert told == (FAILURE_KEY, Kind.FAILURE, Outcome.FAILED, FAILURE_NAME, '"why"', 1)

    async def test_what_another_claim_sends_is_no_failure(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        answer = await worker.tick(moves=[Move(claim.id, 7, Verb.HANDLE, error=b'"why"')])
        assert answer.applied == frozenset()
        assert len(await journal_of(worker, claim)) == 1

    async def test_children_that_live_are_to_end_but_not_those_of_the_handler(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await only_child(worker, parent, priority=0)
        answer = await worker.tick(moves=[Move(parent.id, 1, Verb.HANDLE, error=b'"why"')])
        assert answer.later == 1
        parent = next(each for each in await worker.claim(3) if each.id == parent.id)
        names = {"on_failure/child": 8, "on_failure-child": 9}
        made = [Child(parent.id, 1, key, name, "task", worker.lanes[0]) for name, key in names.items()]
        await worker.tick(moves=[Move(parent.id, 2, Verb.HOLD)], children=made)
        await journal.deliver_signals(worker.connection, worker.schema, worker.bucket)
        statuses = await worker.connection.fetch(
            "select step_name, status from zart.zart_executions where parent = $1 order by 1", parent.id
        )
        assert [tuple(row) for row in statuses] == [("child", 4), ("on_failure-child", 4), ("on_failure/child", 0)]
        assert await worker.connection.fetchval("select count(*) from zart.zart_signals") == 0

    async def test_children_of_the_handler_have_no_part_in_the_deadline(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await worker.connection.execute("update zart.zart_executions set deadline = now() where id = $1", parent.id)
        lane, move = worker.lanes[0], Move(parent.id, 1, Verb.HOLD)
        made = [
            Child(parent.id, 1, 8, "on_failure/a", "task", lane, 0),
            Child(parent.id, 1, 9, "on_failure/b", "task", lane, 0, deadline=60.0),
        ]
        await worker.tick(moves=[move], children=made)
        left = await worker.connection.fetch(
            "select extract(epoch from deadline - now()) from zart.zart_executions where parent = $1"
            " order by step_name",
            parent.id,
        )
        assert left[0][0] is None
        assert 59 < left[1][0] <= 60


class TestRetry:
    async def test_failures_leave_the_journal_and_successes_stay(self, worker: TickingWorker) -> None:
        [claim] = await worker.claim()
        await worker.tick(
            [
                Checkpoint(claim.id, 1, 1, name="good", result=b"1"),
                Checkpoint(claim.id, 1, 2, Kind.STEP, Outcome.FAILED, 2, name="bad", result=None, error=b'"no"'),
                Checkpoint(claim.id, 1, 3, Kind.EVENT, Outcome.TIMED_OUT, name="event"),
            ],
            [Move(claim.id, 1, Verb.RETRY, due=0.0, error=b'"why"')],
        )
        claim = next(each for each in await worker.claim(3) if each.id == claim.id)
        rows = await journal_of(worker, claim)
        assert {(row["what"], row["name"]) for row in rows[1:]} == {
            ("checkpoint", "good"),
            ("checkpoint", "event"),
            ("attempt", "bad"),
        }
        record = await executions.status(worker.connection, worker.schema, worker.bucket, "a")
        assert record is not None
        assert (record.attempt, record.error) == (1, "why")

    async def test_a_failed_child_runs_again_and_is_awaited_again(self, worker: TickingWorker) -> None:
        [parent] = await worker.claim()
        await only_child(worker, parent, priority=0)
        [child] = await worker.claim()
        await worker.tick(moves=[Move(child.id, child.epoch, Verb.FINISH, status=StoredStatus.FAILED, error=b'"no"')])
        await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.RETRY)])
        parent = next(each for each in await worker.claim(3) if each.id == parent.id)
        assert parent.done == 0
        await only_child(worker, parent, priority=0)
        [again] = await worker.claim()
        assert (again.id, again.run, again.epoch) == (child.id, 2, 2)
        await worker.tick(moves=[Move(again.id, again.epoch, Verb.FINISH, output=b"1")])
        rows = await journal_of(worker, parent)
        assert [(row["what"], row["done"], row["status"]) for row in rows] == [
            ("counters", 1, None),
            ("checkpoint", None, StoredStatus.COMPLETED),
            ("attempt", None, None),
        ]
