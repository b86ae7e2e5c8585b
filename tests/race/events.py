"""Executions that wait for one event each, senders who offer it, and a referee: every order that chance finds.

Each execution is one interleaving. Its body follows one rule: the counter it parks with comes from a look that was
answered before the event's key was read, or from the snapshot of its journal. Its senders strike when it has come to
an act that chance named, in a transaction of their own or of a caller who commits later or rolls back.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import asyncpg

from tests.race.event_body import EventWorker
from tests.race.event_senders import Senders
from tests.race.event_stage import EVENT_KEY, TIMED_OUT, WORKERS, Stage, Story, outcome_of
from tests.race.scene import Scene
from tests.support.ticking import start
from zart.model import EventAnswer, StoredStatus
from zart.store import executions, queue
from zart.store.statements import in_schema

SENDERS, LIVE, STARTED_TOGETHER = 8, 64, 16
PATIENCE = 20.0
"""Seconds without any ending after which somebody waits for ever."""
TICK_PATIENCE = "2s"
"""How long a tick may wait for a lock; senders keep theirs until ticks have been answered."""


async def play(scene: Scene, *, seed: int, interleavings: int, reads_first: bool = False) -> Counter[str]:
    """Play until that many executions have ended, or something is wrong; gives back what happened how often.

    Args:
        reads_first: the bodies make the mistake to read the event's key before they ask for the counter.
    """
    stage = Stage(scene, random.Random(seed))
    await scene.start("warm up")
    await executions.cancel(scene.observer, scene.schema, scene.bucket, "warm up")
    workers = [await _worker(stage, number, reads_first) for number in range(WORKERS)]
    senders = Senders(stage, [await scene.connect() for _ in range(SENDERS)])
    referee = Referee(stage, await scene.connect())
    try:
        async with asyncio.TaskGroup() as players:
            for worker in workers:
                players.create_task(worker.run())
            players.create_task(referee.watch())
            await _play_all(stage, senders, players, interleavings)
            stage.over = True
    except* asyncpg.PostgresError as errors:
        scene.must(False, f"a statement failed: {errors.exceptions}")
    if not scene.violations:
        await referee.judge()
    return stage.counts


async def _worker(stage: Stage, number: int, reads_first: bool) -> EventWorker:
    worker = await stage.scene.worker()
    await worker.connection.execute(f"set lock_timeout = '{TICK_PATIENCE}'")
    return EventWorker(stage, number, worker, [await stage.scene.connect() for _ in range(3)], reads_first)


async def _play_all(stage: Stage, senders: Senders, players: asyncio.TaskGroup, interleavings: int) -> None:
    """Start executions as others end, each with its senders, until all have ended and all senders were answered."""
    started = 0
    sending: set[asyncio.Task[None]] = set()
    while started < interleavings and not stage.over:
        await stage.bell.until(lambda: stage.over or len(stage.stories) - stage.counts["ended"] < LIVE)
        for story in await _start(stage, started):
            for part in _parts(stage, senders, story):
                task = players.create_task(part)
                sending.add(task)
                task.add_done_callback(sending.discard)
        started = len(stage.stories)
    await stage.bell.until(lambda: stage.over or stage.counts["ended"] == started)
    while sending and not stage.over:
        await asyncio.wait(set(sending), timeout=0.1)
    for task in sending:
        task.cancel()


async def _start(stage: Stage, first: int) -> list[Story]:
    """Executions that nobody sees before their stories are on the stage."""
    scene, chance = stage.scene, stage.chance
    stories = {
        name: Story(name, timeout=chance.choice([None, chance.random() * 0.03]), parks=chance.random() < 0.85)
        for name in (f"story {number}" for number in range(first, first + STARTED_TOGETHER))
    }
    async with scene.observer.transaction():
        await start(scene.database, scene.observer, *stories)
        text = in_schema(
            "select id, execution_id from :schema.zart_executions where bucket = $1 and execution_id = any($2)",
            scene.schema,
        )
        for row in await scene.observer.fetch(text, scene.bucket, list(stories)):
            story = stories[row["execution_id"]]
            story.id = row["id"]
            stage.stories[story.id] = story
    return list(stories.values())


def _parts(stage: Stage, senders: Senders, story: Story) -> list[Coroutine[Any, Any, None]]:
    """One sender or two; an execution that waits without end gets an event for sure; some are cancelled."""
    parts: list[Coroutine[Any, Any, None]] = [senders.play(story, "first", must_commit=story.timeout is None)]
    if stage.chance.random() < 0.5:
        parts.append(senders.play(story, "second", must_commit=False))
    if stage.chance.random() < 0.05:
        parts.append(senders.cancel(story))
    return parts


class Referee:
    """Looks at the tables: all the time for sleepers that should have been woken, at the end for what was kept."""

    def __init__(self, stage: Stage, connection: asyncpg.Connection) -> None:
        self._stage, self._scene, self._connection = stage, stage.scene, connection

    async def watch(self) -> None:
        """No snapshot shows a sleeper whose event is stored and who is not due."""
        text = in_schema(
            "select array_agg(q.id) from :schema.zart_queue q join :schema.zart_tasks j"
            " on j.bucket = q.bucket and j.id = q.id and j.run = q.run and j.step_key = $2"
            " where q.bucket = $1 and q.worker is null and q.run_at > clock_timestamp()",
            self._scene.schema,
        )
        ended, since = 0, asyncio.get_running_loop().time()
        while not self._stage.over:
            for id in await self._connection.fetchval(text, self._scene.bucket, EVENT_KEY) or ():
                self._stage.violation(self._stage.stories[id], "a wake-up was lost")
            now = asyncio.get_running_loop().time()
            if self._stage.counts["ended"] > ended:
                ended, since = self._stage.counts["ended"], now
            elif now > since + PATIENCE:
                for story in self._stage.stories.values():
                    if not story.is_over:
                        self._stage.violation(story, "it waits for ever")
                assert self._stage.over, "all have ended, and some sender is not answered"
            await asyncio.sleep(0.005)

    async def judge(self) -> None:
        """What stands in the tables is what every player was told."""
        stories = list(self._stage.stories.values())
        place = self._connection, self._scene.schema, self._scene.bucket
        ids, ones = [story.id for story in stories], [1] * len(stories)
        rows = await queue.read_checkpoints(*place, ids, ones, [EVENT_KEY] * len(stories))
        kept = {row["id"]: row for row in rows}
        endings = {row["id"]: row["status"] for row in await queue.read_endings(*place, ids)}
        for story in stories:
            wrong = _wrong_in(story, kept.get(story.id), endings.get(story.id))
            if wrong is not None:
                self._stage.violation(story, wrong)


def _wrong_in(story: Story, kept: asyncpg.Record | None, ending: int | None) -> str | None:
    """What was told to someone and is not so."""
    accepted = [payload for payload, answer in story.answers if answer is EventAnswer.ACCEPTED]
    refused = [payload for payload, answer in story.answers if answer is not EventAnswer.ACCEPTED]
    stands = None if kept is None else outcome_of(kept)
    if ending != (StoredStatus.COMPLETED if story.ended else StoredStatus.CANCELLED):
        return f"its record has status {ending}"
    if len(accepted) > 1:
        return "several senders were told that theirs is the event"
    if accepted and stands != accepted[0]:
        return f"an accepted event is not in the journal, which has {stands!r}"
    if stands in (*refused, *story.withdrawn):
        return "an event is in the journal whose sender was told otherwise"
    if stands not in (*accepted, TIMED_OUT, None):
        return f"the journal has {stands!r}, which nobody offered"
    if story.outcome is not None and story.outcome != stands:
        return f"the body went on with what is not in the journal, which has {stands!r}"
    if story.outcome is None and story.ended:
        return "it ended without an outcome"
    if any(answer is EventAnswer.ALREADY_OFFERED for _, answer in story.answers) and stands is None:
        return "a sender was told of another event, and there is none"
    if any(answer is None for _, answer in story.answers):
        return "a sender was told that there is no such execution"
    return None
