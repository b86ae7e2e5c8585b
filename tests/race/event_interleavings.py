"""The races about events, each played in the one order that tells right from wrong."""

from __future__ import annotations

from tests.race.interleavings import EVENT_KEY, WAIT_KEY, Interleaving
from tests.race.scene import Scene
from tests.support.ticking import Checkpoint, Claim, Move
from zart.model import EventAnswer, Kind, Outcome, Verb
from zart.store import executions, journal, queue
from zart.store.statements import in_schema


async def event_between_look_and_park(scene: Scene) -> None:
    """An event that comes after the body has looked, and before it is parked, wakes it."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    await worker.tick([Checkpoint(claim.id, claim.epoch, WAIT_KEY, Kind.WAIT)])
    rows = await queue.load_journal(worker.connection, scene.schema, scene.bucket, [claim.id], [1], worker.id)
    seen = next(row["wakes"] for row in rows if row["what"] == "counters")
    await journal.offer_event(scene.observer, scene.schema, scene.bucket, "a", EVENT_KEY, "event", "1")
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK, seen=seen)])
    scene.must(await scene.run_at_of(claim.id) == "due", "the wake-up is lost")


async def event_while_the_journal_is_read(scene: Scene) -> None:
    """A journal that does not have the event yet comes with a counter that does not know of it either."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    load = queue.load_journal(worker.connection, scene.schema, scene.bucket, [claim.id], [1], worker.id)
    user = await scene.connect()
    async with user.transaction():
        await user.execute(in_schema("lock table :schema.zart_attempts in access exclusive mode", scene.schema))
        reading = await scene.begin(worker.connection, load)
        await _offer(scene, "1")
    rows = await reading
    wakes = next(row["wakes"] for row in rows if row["what"] == "counters")
    has_event = any(row["step_key"] == EVENT_KEY for row in rows)
    scene.must(has_event or wakes == 0, "a counter is newer than the journal it came with")


async def event_for_a_parked_body(scene: Scene) -> None:
    """An event that comes when the body is parked without end makes it due."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK)])
    await _offer(scene, "1")
    scene.must(await scene.run_at_of(claim.id) == "due", "the wake-up is lost")


async def event_for_a_body_that_waits_in_memory(scene: Scene) -> None:
    """A body that waits in memory hears of an event by looking, and of nothing before."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    scene.must(await worker.look([claim]) == {}, "a body heard of an event that has not come")
    await _offer(scene, "1")
    scene.must(await worker.look([claim]) == {claim.id: 1}, "a body that looks does not hear of an event")


async def cancel_of_a_body_that_waits_in_memory(scene: Scene) -> None:
    """A body that waits in memory hears by looking that it was cancelled."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    await executions.cancel(scene.observer, scene.schema, scene.bucket, "a")
    scene.must(await worker.look([claim]) == {claim.id: None}, "a body that looks does not hear that it was cancelled")


async def event_for_a_delayed_execution(scene: Scene) -> None:
    """An event is kept for an execution that is to start later; it does not start it."""
    await scene.start("a")
    await executions.start(
        scene.observer,
        scene.schema,
        scene.bucket,
        ["delayed"],
        ["null"],
        task_name="task",
        lane=scene.lane,
        priority=2,
        delay=3600.0,
    )
    offered = await journal.offer_event(scene.observer, scene.schema, scene.bucket, "delayed", EVENT_KEY, "event", "1")
    scene.must(offered.answer is EventAnswer.ACCEPTED, f"an early event was {offered.answer}")
    id = await scene.fetchval("select id from :schema.zart_executions where execution_id = 'delayed'")
    scene.must(await scene.run_at_of(id) == "later", "an event started a delayed execution")


async def event_offered_twice(scene: Scene) -> None:
    """The first event stays, and only its sender is told that it was accepted."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    answers = [await _offer(scene, payload) for payload in ("1", "2")]
    scene.must(answers == [EventAnswer.ACCEPTED, EventAnswer.ALREADY_OFFERED], f"the senders were told {answers}")
    scene.must(await _kept(scene, claim) == (Outcome.COMPLETED, "1"), "the first event did not stay")


async def event_offered_while_another_is_rolled_back(scene: Scene) -> None:
    """A sender waits to be answered until an earlier sender's transaction has ended, and is told the truth."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    early, late = await scene.connect(), await scene.connect()
    withdrawn = early.transaction()
    await withdrawn.start()
    await journal.offer_event(early, scene.schema, scene.bucket, "a", EVENT_KEY, "event", "1")
    offer = await scene.begin(late, journal.offer_event(late, scene.schema, scene.bucket, "a", EVENT_KEY, "event", "2"))
    await withdrawn.rollback()
    answer = (await offer).answer
    scene.must(answer is EventAnswer.ACCEPTED, f"the only event was {answer}")
    scene.must(await _kept(scene, claim) == (Outcome.COMPLETED, "2"), "the only event is not kept")


async def event_after_its_timeout(scene: Scene) -> None:
    """An event that comes after its wait has timed out is refused, and the timeout stays."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    await worker.tick([_timeout(claim)])
    answer = await _offer(scene, "1")
    scene.must(answer is EventAnswer.ALREADY_OFFERED, f"a late event was {answer}")
    scene.must((await _kept(scene, claim))[0] == Outcome.TIMED_OUT, "the timeout did not stay")


async def event_while_its_timeout_is_written(scene: Scene) -> None:
    """An offer that waits for a tick keeps nothing that the tick could wait for."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    user = await scene.connect()
    async with worker.connection.transaction():
        await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.HOLD)])
        offer = await scene.begin(
            user, journal.offer_event(user, scene.schema, scene.bucket, "a", EVENT_KEY, "event", "1")
        )
        await worker.tick([_timeout(claim)])
    answer = (await offer).answer
    scene.must(answer is EventAnswer.ALREADY_OFFERED, f"a late event was {answer}")
    scene.must((await _kept(scene, claim))[0] == Outcome.TIMED_OUT, "the timeout did not stay")


async def timeout_after_its_event(scene: Scene) -> None:
    """A timeout that comes after its event is not kept, and the rest of its tick is."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    await _offer(scene, "1")
    answer = await worker.tick([_timeout(claim), Checkpoint(claim.id, claim.epoch, 1)])
    scene.must(answer.checkpointed == 1, f"{answer.checkpointed} of 1 checkpoints were kept")
    scene.must(await _kept(scene, claim) == (Outcome.COMPLETED, "1"), "the event did not stay")


async def timeout_of_an_event_offered_in_an_open_transaction(scene: Scene) -> None:
    """A tick never waits for an offer that is not committed; when it is, the first one of the key stays."""
    await scene.start("a")
    worker = await scene.worker()
    [claim] = await worker.claim(1)
    timeout = _timeout(claim)
    user = await scene.connect()
    offer = user.transaction()
    await offer.start()
    await journal.offer_event(user, scene.schema, scene.bucket, "a", EVENT_KEY, "event", "1")
    tick = await scene.begin(worker.connection, worker.tick([timeout]))
    scene.must(tick.done(), "a tick waits for a caller's transaction")
    await offer.commit()
    await tick
    await worker.tick([timeout])
    scene.must(await _kept(scene, claim) == (Outcome.COMPLETED, "1"), "a committed event was replaced by its timeout")


EVENT_INTERLEAVINGS: tuple[Interleaving, ...] = (
    event_between_look_and_park,
    event_while_the_journal_is_read,
    event_for_a_parked_body,
    event_for_a_body_that_waits_in_memory,
    cancel_of_a_body_that_waits_in_memory,
    event_for_a_delayed_execution,
    event_offered_twice,
    event_offered_while_another_is_rolled_back,
    event_after_its_timeout,
    event_while_its_timeout_is_written,
    timeout_after_its_event,
    timeout_of_an_event_offered_in_an_open_transaction,
)


def _timeout(claim: Claim) -> Checkpoint:
    return Checkpoint(claim.id, claim.epoch, EVENT_KEY, Kind.EVENT, Outcome.TIMED_OUT)


async def _offer(scene: Scene, payload: str) -> EventAnswer | None:
    offered = await journal.offer_event(scene.observer, scene.schema, scene.bucket, "a", EVENT_KEY, "event", payload)
    return offered.answer


async def _kept(scene: Scene, claim: Claim) -> tuple[int, str | None]:
    """Status and payload under the event's key."""
    [row] = await queue.read_checkpoints(scene.observer, scene.schema, scene.bucket, [claim.id], [1], [EVENT_KEY])
    return row["status"], row["result"]
