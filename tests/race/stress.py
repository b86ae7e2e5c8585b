"""Random bodies on several workers, while connections are cut, leases stolen, rows locked and roots cancelled.

Nothing may get stuck, happen twice, or come back changed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from time import monotonic

import asyncpg

from tests.race.bodies import Program, key_of, random_program
from tests.race.record import Race
from tests.race.stress_worker import StressWorker
from tests.support.database import Database
from zart.store import executions, journal, queue, workers
from zart.store.statements import in_schema, statement

WORKERS = 4
ROUND = 60
STUCK = 5.0
"""Seconds without any progress after which a round is given up."""

STOLEN = 0.02
"""Chance of each look of the supervisor to take a live worker over."""


_MUST_BE_NONE = {
    "live records without a queue row": "select count(*) from :schema.zart_executions e where e.status = 0"
    " and not exists (select from :schema.zart_queue q where q.id = e.id)",
    "children without a checkpoint of theirs in the parent's journal": "select count(*) from :schema.zart_executions e"
    " join :schema.zart_executions p on p.id = e.parent and p.status = 1 and p.run = e.parent_run where not exists"
    " (select from :schema.zart_tasks t where t.id = p.id and t.run = p.run and t.step_key = e.parent_key)",
    "rows that are in another bucket than their execution": "select count(*) from :schema.zart_executions e join"
    " (select id, bucket from :schema.zart_tasks union select id, bucket from :schema.zart_attempts) o"
    " on o.id = e.id and o.bucket <> e.bucket",
}


async def stress(database: Database, *, seed: int, seconds: float) -> Race:
    """Play rounds of random executions for at least `seconds`; the violations are in the answer."""
    race = Race(seed, random.Random(seed))
    observer = await database.connect()
    lanes = await queue.add_lanes(observer, database.schema, [("default", "root"), ("default", "child")])
    root_lane, child_lane = lanes["default", "root"], lanes["default", "child"]
    fleet = [
        StressWorker(race, database, number % database.buckets, [root_lane, child_lane], child_lane)
        for number in range(max(WORKERS, database.buckets))
    ]
    background = [asyncio.create_task(worker.run()) for worker in fleet]
    background.append(asyncio.create_task(_supervise(race, database, fleet)))
    end = monotonic() + seconds
    try:
        while monotonic() < end and not race.violations:
            await _round(race, database, observer, root_lane, background)
        await _check(race, database, observer)
    finally:
        for worker in fleet:
            worker.stop()
        await asyncio.wait(background[:-1], timeout=5)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await observer.close()
    print(f"seed {seed}: {dict(race.counts)}", flush=True)
    return race


async def _round(
    race: Race, database: Database, observer: asyncpg.Connection, lane: int, background: Sequence[asyncio.Task[None]]
) -> None:
    """Start a batch of roots and wait until nothing is left of them."""
    number = race.counts["roots"]
    programs = {f"root {number + each}": random_program(race.chance) for each in range(ROUND)}
    race.counts["roots"] += ROUND
    buckets = {name: index % database.buckets for index, name in enumerate(programs)}
    for bucket in range(database.buckets):
        names = [name for name in programs if buckets[name] == bucket]
        texts = [json.dumps(programs[name]) for name in names]
        await executions.start(observer, database.schema, bucket, names, texts, task_name="root", lane=lane, priority=2)
    players = [_offer(race, database, programs, buckets) for _ in range(3)] + [_cancel(race, database, buckets)]
    tasks = [asyncio.create_task(player) for player in players]
    try:
        await _until_drained(race, database, observer, [*background, *tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_drained(
    race: Race, database: Database, observer: asyncpg.Connection, tasks: Sequence[asyncio.Task[None]]
) -> None:
    last, since = "", monotonic()
    while left := await observer.fetchval(in_schema("select count(*) from :schema.zart_queue", database.schema)):
        for task in tasks:
            if task.done() and (error := task.exception()) is not None:
                raise error
        now = f"{left} {race.counts['claims']} {race.counts['steps run']}"
        if now != last:
            last, since = now, monotonic()
        elif monotonic() - since > STUCK:
            race.violation(f"{left} executions are stuck: {await _stuck(database, observer)}")
            return
        if race.violations:
            return
        await asyncio.sleep(0.02)


async def _stuck(database: Database, observer: asyncpg.Connection) -> list[dict[str, object]]:
    query = (
        "select q.*, e.execution_id from :schema.zart_queue q left join :schema.zart_executions e using (id) limit 3"
    )
    return [dict(row) for row in await observer.fetch(in_schema(query, database.schema))]


async def _supervise(race: Race, database: Database, fleet: Sequence[StressWorker]) -> None:
    """Take over dead workers and now and then a live one, deliver signals, look for bodies that wait in memory."""
    connection = await database.connect()
    while True:
        await asyncio.sleep(0.004)
        for bucket, worker_id in list(race.dead_workers):
            done = await workers.take_over_worker(
                connection, database.schema, bucket, worker_id, proof=True, blame=None
            )
            race.counts["claims taken over"] += len(done.freed)
            if done.gone:
                race.dead_workers.remove((bucket, worker_id))
        for bucket in range(database.buckets):
            seen, delivered = await journal.deliver_signals(connection, database.schema, bucket)
            race.counts["signals seen"] += seen
            race.counts["signals delivered"] += delivered
        if race.chance.random() < STOLEN:
            victim = race.chance.choice(fleet)
            race.stolen.add(victim.id)
            race.dead_workers.append((victim.bucket, victim.id))
            race.counts["leases stolen"] += 1
        for worker in fleet:
            await _look(database, connection, worker)


async def _look(database: Database, connection: asyncpg.Connection, worker: StressWorker) -> None:
    turns = [turn for turn in worker.turns.values() if turn.waiting]
    if not turns:
        return
    heard = await queue.look(
        connection,
        database.schema,
        worker.bucket,
        worker.id,
        [turn.claim.id for turn in turns],
        [turn.claim.epoch for turn in turns],
        [turn.wakes for turn in turns],
        [turn.done_at for turn in turns],
    )
    for turn in turns:
        if turn.claim.id in heard:
            turn.poked.set()


async def _offer(race: Race, database: Database, programs: dict[str, Program], buckets: dict[str, int]) -> None:
    """A user who offers every event, in transactions that hold the row for a while or are rolled back."""
    connection = await database.connect()
    pending = [(name, step[1]) for name, program in programs.items() for step in program if step[0] == "event"]
    try:
        while pending:
            name, event = race.chance.choice(pending)
            transaction = connection.transaction()
            await transaction.start()
            payload = json.dumps(race.chance.random())
            offered = await journal.offer_event(
                connection, database.schema, buckets[name], name, key_of("event", event), event, payload
            )
            if race.chance.random() < 0.3:
                await asyncio.sleep(race.chance.random() * 0.05)
            if race.chance.random() < 0.3:
                await transaction.rollback()
                continue
            await transaction.commit()
            race.counts[f"offers {offered.answer}"] += 1
            pending.remove((name, event))
            await asyncio.sleep(race.chance.random() * 0.003)
    finally:
        connection.terminate()


async def _cancel(race: Race, database: Database, buckets: dict[str, int]) -> None:
    """A user who cancels some roots."""
    connection = await database.connect()
    try:
        for _ in range(10):
            await asyncio.sleep(race.chance.random() * 0.1)
            name = race.chance.choice(list(buckets))
            rows = await connection.fetch(statement("cancel", database.schema), buckets[name], name, None)
            race.counts[f"cancels {rows[0]['what']}"] += 1
            ids = [row["id"] for row in rows if row["what"] == "cancelled"]
            for row in await queue.read_endings(connection, database.schema, buckets[name], ids):
                race.end((row["id"], row["run"]), "CANCELLED")
    finally:
        connection.terminate()


async def _check(race: Race, database: Database, observer: asyncpg.Connection) -> None:
    """What the tables say in the end, when nothing is left to do."""
    if race.violations:
        return
    for what, query in _MUST_BE_NONE.items():
        if found := await observer.fetchval(in_schema(query, database.schema)):
            race.violation(f"{found} {what}")
    completed = {key[0] for key, how in race.ended.items() if how == "COMPLETED"}
    stored = await observer.fetchval(
        in_schema("select count(*) from :schema.zart_executions where status = 1 and id = any($1)", database.schema),
        list(completed),
    )
    if stored != len(completed):
        race.violation(f"{len(completed) - stored} acknowledged completions are not stored")
