"""The races of the protocol, each played in the one order that tells right from wrong.

A player is stopped where the race is: inside an open transaction, or between two of its ticks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.race.scene import Scene
from tests.support.ticking import Checkpoint, Child, Claim, Move, TickingWorker, read_answer
from zart.model import Kind, StoredStatus, Verb
from zart.store import executions, journal, workers
from zart.store.statements import in_schema, statement

EVENT_KEY, WAIT_KEY = 51, 50

Interleaving = Callable[[Scene], Awaitable[None]]


async def takeover_while_the_last_tick_commits(scene: Scene) -> None:
    """Claims of a tick that has not committed yet are freed, or are there to be freed by the next try."""
    await scene.start("a", "b", "c")
    worker = await scene.worker()
    supervisor = await scene.connect()
    last_tick = worker.connection.transaction()
    await last_tick.start()
    await worker.claim(3)
    takeover = await scene.begin(
        supervisor,
        workers.take_over_worker(supervisor, scene.schema, scene.bucket, worker.id, proof=True, blame=None),
    )
    await last_tick.commit()
    await takeover
    await scene.take_over(worker.id)
    scene.must(await scene.stranded() == 0, "claims belong to a worker that nobody will take over")


async def reregistration_while_the_last_tick_commits(scene: Scene) -> None:
    """The heir's answer has the claims of a tick that was committing on the lost connection."""
    await scene.start("a", "b", "c")
    worker = await scene.worker()
    heir = TickingWorker(await scene.connect(), scene.schema, scene.bucket, [scene.lane])
    last_tick = worker.connection.transaction()
    await last_tick.start()
    await worker.claim(3)
    registration = await scene.begin(heir.connection, heir.register(old=worker.id))
    await last_tick.commit()
    claims = await registration
    scene.must(len(claims) == 3, f"the heir knows of {len(claims)} of 3 claims")
    scene.must(await scene.stranded() == 0, "claims stay with the former identity")


async def tick_of_a_former_identity(scene: Scene) -> None:
    """A tick that was still in the socket when its connection was given up writes nothing."""
    await scene.start("a", "b")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    heir = TickingWorker(await scene.connect(), scene.schema, scene.bucket, [scene.lane])
    inherited = await heir.register(old=worker.id)
    scene.must([each.id for each in inherited] == [claim.id], "the heir was not given the claim")
    late = await worker.tick([Checkpoint(claim.id, claim.epoch, 1)], claim=1)
    scene.must(late.fenced, "a former identity got past the fence")
    scene.must(await _journal_rows(scene) == 0, "a former identity wrote")


async def tick_of_a_worker_taken_over(scene: Scene) -> None:
    """A worker that is marked dead writes nothing, also to a claim that could not be freed yet."""
    await scene.start("a", "b", "c")
    worker = await scene.worker()
    claims = await worker.claim(2)
    user = await scene.connect()
    async with user.transaction():
        await journal.offer_event(user, scene.schema, scene.bucket, "b", EVENT_KEY, "event", "1")
        await scene.take_over(worker.id)
        late = await worker.tick([Checkpoint(claim.id, claim.epoch, 1) for claim in claims], claim=1)
    scene.must(late.fenced, "a dead worker got past the fence")
    scene.must(await _journal_rows(scene) == 0, "a dead worker wrote")


async def children_added_while_cancelled(scene: Scene) -> None:
    """Children that a tick adds while their parent is being cancelled are cancelled with it."""
    await scene.start("a")
    worker = await scene.worker()
    [parent] = await worker.claim(1)
    tick = worker.connection.transaction()
    await tick.start()
    await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.HOLD)], children=_children(scene, parent.id, 3))
    user = await scene.connect()
    cancellation = await scene.begin(user, executions.cancel(user, scene.schema, scene.bucket, "a"))
    await tick.commit()
    await cancellation
    live = await scene.fetchval("select count(*) from :schema.zart_queue")
    scene.must(live == 0, f"{live} children of a cancelled parent live on")


async def child_ends_while_its_parent_is_locked(scene: Scene) -> None:
    """A parent whose row another transaction holds when its last child ends is told later."""
    worker, parent, children = await _parked_parent(scene, 1)
    user = await scene.connect()
    async with user.transaction():
        await user.execute(in_schema("select from :schema.zart_queue where id = $1 for update", scene.schema), parent)
        await _finish(worker, children)
        await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
    await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
    scene.must(await scene.run_at_of(parent) == "due", "the parent of a finished child sleeps for ever")


async def child_is_cancelled_by_itself(scene: Scene) -> None:
    """A parked parent is ready as soon as its last child was cancelled."""
    _, parent, [child] = await _parked_parent(scene, 1)
    await _cancel(scene, child)
    scene.must(await scene.run_at_of(parent) == "due", "the parent of a cancelled child sleeps on")
    scene.must(await _ends_counted(scene, parent) == 1, "the end of a cancelled child is not counted once")


async def child_is_cancelled_while_its_parent_is_locked(scene: Scene) -> None:
    """A cancel never waits for the parent of what it ends; that is told later."""
    _, parent, [child] = await _parked_parent(scene, 1)
    user = await scene.connect()
    async with user.transaction():
        await user.execute(in_schema("select from :schema.zart_queue where id = $1 for update", scene.schema), parent)
        await _cancel(scene, child)
    await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
    scene.must(await scene.run_at_of(parent) == "due", "the parent of a cancelled child sleeps for ever")
    scene.must(await _ends_counted(scene, parent) == 1, "the end of a cancelled child is not counted once")


async def signals_of_a_locked_parent_before_those_of_another(scene: Scene) -> None:
    """However many signals wait for a parent that is locked, those of another parent are delivered."""
    await scene.start("a", "b")
    worker = await scene.worker()
    locked, free = await worker.claim(2)
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK, done_at=1) for claim in (locked, free)])
    user = await scene.connect()
    async with user.transaction():
        lock = in_schema("select from :schema.zart_queue where id = $1 for update", scene.schema)
        await user.execute(lock, locked.id)
        signals = in_schema(
            "insert into :schema.zart_signals(bucket, id, run, n) select $1, $2, 1, 1 from generate_series(1, $3)",
            scene.schema,
        )
        for claim, count in ((locked, 1000), (free, 1)):
            await scene.observer.execute(signals, scene.bucket, claim.id, count)
        for _ in range(3):
            await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
        scene.must(await scene.run_at_of(free.id) == "due", "a locked parent's signals keep those of others waiting")


async def children_end_in_one_tick(scene: Scene) -> None:
    """Children of one parent that end in one tick are all counted."""
    worker, parent, children = await _parked_parent(scene, 2)
    await _finish(worker, children)
    scene.must(await scene.run_at_of(parent) == "due", "the parent of finished children sleeps for ever")


async def last_two_children_end_on_two_workers_at_once(scene: Scene) -> None:
    """Neither tick waits for the other, both ends are counted, and the parent is claimed once."""
    worker, parent, children = await _parked_parent(scene, 2, claimed=1)
    other = await scene.worker()
    others = await other.claim(1)
    commits = worker.connection.transaction()
    await commits.start()
    await _finish(worker, children)
    try:
        async with asyncio.timeout(5):
            await _finish(other, others)
    except TimeoutError:
        scene.must(False, "a tick waits for another worker's")
    await commits.commit()
    await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
    scene.must(await _ends_counted(scene, parent) == 2, "not both ends were counted")
    claims = [*await worker.claim(2), *await other.claim(2)]
    scene.must([claim.id for claim in claims] == [parent], "the parent of finished children is not claimed once")


async def parent_parks_in_the_tick_that_ends_its_child(scene: Scene) -> None:
    """One tick that ends the last child and parks the parent leaves the parent ready."""
    await scene.start("a")
    worker = await scene.worker()
    [parent] = await worker.claim(1)
    await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.HOLD)], children=_children(scene, parent.id, 1))
    [child] = await worker.claim(1)
    await worker.tick(
        moves=[Move(parent.id, parent.epoch, Verb.PARK, done_at=1), Move(child.id, child.epoch, Verb.FINISH)]
    )
    scene.must(await scene.run_at_of(parent.id) == "due", "the parent of a finished child sleeps for ever")


async def row_held_by_an_open_transaction(scene: Scene) -> None:
    """A caller's open transaction that holds one queue row delays no other execution of the tick."""
    await scene.start("a", "b")
    worker = await scene.worker()
    claims = await worker.claim(2)
    moves = [Move(claim.id, claim.epoch, Verb.PARK) for claim in claims]
    user = await scene.connect()
    held = user.transaction()
    await held.start()
    await journal.offer_event(user, scene.schema, scene.bucket, "a", EVENT_KEY, "event", "1")
    sent = worker.connection.fetch(statement("tick", scene.schema), *worker.arguments(moves=moves))
    tick = await scene.begin(worker.connection, sent)
    scene.must(tick.done(), "a tick waits for a caller's transaction")
    await held.rollback()
    applied = read_answer(await tick, moves).applied
    scene.must(applied == {claims[1].id}, f"applied are {set(applied)}, free was {claims[1].id}")


async def turn_of_a_former_run(scene: Scene) -> None:
    """The turn of a cancelled run cannot end the run that an operator started after it."""
    await scene.start("a")
    worker = await scene.worker()
    [former] = await worker.claim(1)
    await executions.cancel(scene.observer, scene.schema, scene.bucket, "a")
    await executions.restart(scene.observer, scene.schema, scene.bucket, "a")
    await worker.claim(1)
    late = await worker.tick(
        [Checkpoint(former.id, former.epoch, 1)], [Move(former.id, former.epoch, Verb.FINISH, output=b'"former"')]
    )
    scene.must(not late.applied, "the turn of a former run ended the present one")
    scene.must(late.checkpointed == 0, "the turn of a former run wrote into the journal of the present one")


async def turn_before_a_release(scene: Scene) -> None:
    """The turn that ended in quarantine cannot end the execution once more after its release."""
    await scene.start("a")
    worker = await scene.worker()
    [former] = await worker.claim(1)
    ending = Move(former.id, former.epoch, Verb.FINISH, status=StoredStatus.QUARANTINED)
    await worker.tick(moves=[ending])
    await _release(scene)
    await worker.claim(1)
    late = await worker.tick([Checkpoint(former.id, former.epoch, 1)], [ending])
    scene.must(not late.applied, "a turn before the release ended the execution")
    scene.must(late.checkpointed == 0, "a turn before the release wrote into the journal")


async def child_ends_while_its_parent_is_released(scene: Scene) -> None:
    """A child whose end commits while its parent is released is counted."""
    worker, parent, [child] = await _quarantined_parent(scene)
    ending = worker.connection.transaction()
    await ending.start()
    await _finish(worker, [child])
    operator = await scene.connect()
    release = await scene.begin(operator, executions.release(operator, scene.schema, scene.bucket, "a"))
    await ending.commit()
    await release
    scene.must(await _ends_counted(scene, parent) == 1, "the end of a child is not counted at its parent's release")


async def child_is_cancelled_while_its_parent_is_released(scene: Scene) -> None:
    """A child whose cancel commits while its parent is released is counted once."""
    _, parent, [child] = await _quarantined_parent(scene)
    canceller, operator = await scene.connect(), await scene.connect()
    cancelling = canceller.transaction()
    await cancelling.start()
    name = await scene.fetchval("select execution_id from :schema.zart_executions where id = $1", child.id)
    await executions.cancel(canceller, scene.schema, scene.bucket, name)
    release = await scene.begin(operator, executions.release(operator, scene.schema, scene.bucket, "a"))
    await cancelling.commit()
    await release
    await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
    scene.must(await _ends_counted(scene, parent) == 1, "the cancel of a child is not counted once")


async def release_before_the_children_have_ended(scene: Scene) -> None:
    """Word that the children of a quarantined execution are to end means nothing once it is released."""
    _, _, [child] = await _quarantined_parent(scene)
    await _release(scene)
    await journal.deliver_signals(scene.observer, scene.schema, scene.bucket)
    scene.must(await scene.run_at_of(child.id) != "gone", "a child was cancelled whose parent goes on")


INTERLEAVINGS: tuple[Interleaving, ...] = (
    takeover_while_the_last_tick_commits,
    reregistration_while_the_last_tick_commits,
    tick_of_a_former_identity,
    tick_of_a_worker_taken_over,
    children_added_while_cancelled,
    child_ends_while_its_parent_is_locked,
    child_is_cancelled_by_itself,
    child_is_cancelled_while_its_parent_is_locked,
    signals_of_a_locked_parent_before_those_of_another,
    children_end_in_one_tick,
    last_two_children_end_on_two_workers_at_once,
    parent_parks_in_the_tick_that_ends_its_child,
    row_held_by_an_open_transaction,
    turn_of_a_former_run,
    turn_before_a_release,
    child_ends_while_its_parent_is_released,
    child_is_cancelled_while_its_parent_is_released,
    release_before_the_children_have_ended,
)


async def _parked_parent(
    scene: Scene, children: int, claimed: int | None = None
) -> tuple[TickingWorker, int, list[Claim]]:
    """A worker that holds children (all, or so many), whose parent is parked until the last of them ends."""
    await scene.start("a")
    worker = await scene.worker()
    [parent] = await worker.claim(1)
    await worker.tick(
        moves=[Move(parent.id, parent.epoch, Verb.PARK, done_at=children)],
        children=_children(scene, parent.id, children),
    )
    return worker, parent.id, await worker.claim(children if claimed is None else claimed)


async def _quarantined_parent(scene: Scene) -> tuple[TickingWorker, int, list[Claim]]:
    """A worker that holds the child of an execution that has ended in quarantine."""
    await scene.start("a")
    worker = await scene.worker()
    [parent] = await worker.claim(1)
    await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.HOLD)], children=_children(scene, parent.id, 1))
    held = await worker.claim(1)
    await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.FINISH, status=StoredStatus.QUARANTINED)])
    return worker, parent.id, held


async def _release(scene: Scene) -> None:
    async with asyncio.timeout(5):
        await executions.release(scene.observer, scene.schema, scene.bucket, "a")


def _children(scene: Scene, parent: int, count: int) -> list[Child]:
    return [Child(parent, 1, 100 + number, f"child {number}", "task", scene.lane) for number in range(count)]


async def _finish(worker: TickingWorker, claims: list[Claim]) -> None:
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.FINISH, output=b"1") for claim in claims])


async def _cancel(scene: Scene, claim: Claim) -> None:
    name = await scene.fetchval("select execution_id from :schema.zart_executions where id = $1", claim.id)
    async with asyncio.timeout(5):
        await executions.cancel(scene.observer, scene.schema, scene.bucket, name)


async def _ends_counted(scene: Scene, parent: int) -> int:
    found: int = await scene.fetchval("select done from :schema.zart_queue where id = $1", parent)
    return found


async def _journal_rows(scene: Scene) -> int:
    found: int = await scene.fetchval("select count(*) from :schema.zart_tasks where kind = $1", Kind.STEP)
    return found
