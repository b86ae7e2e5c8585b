"""The raw floor: the rows that the engine writes, written by bare statements, without an engine.

Client processes of one connection each write batch after batch: claim, one insert per step, finish. Every statement is
a commit of its own, as each step is durable before the next one begins. Nothing is locked, fenced, matched or read
back, and the values are ready before the clock runs: what is left is asyncpg's encoding and PostgreSQL's writing.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any

import asyncpg
import uvloop

from bench.cpu import cpu_times
from bench.drain import Drain
from bench.rig import BUCKET, SCHEMA, BenchError, Database, step_keys
from bench.scenario import Scenario, number_of
from zart.codec import PLAIN
from zart.model import Kind, Outcome, StoredStatus
from zart.runner.process import fork

_CLAIM = f"""
update {SCHEMA}.zart_queue set worker = $1, epoch = epoch + 1, waiting = false, started_at = now()
where bucket = {BUCKET} and id = any($2::bigint[])
"""
_CHECKPOINT = f"""
insert into {SCHEMA}.zart_tasks(bucket, id, run, step_key, epoch, kind, status, attempts, seconds, name, result)
select {BUCKET}, c.*
from unnest($1::bigint[], $2::int[], $3::bigint[], $4::int[], $5::smallint[], $6::smallint[], $7::smallint[],
            $8::real[], $9::text[], $10::json[])
       c(id, run, step_key, epoch, kind, status, attempts, seconds, name, result)
"""
_FINISH = f"""
with ended as (delete from {SCHEMA}.zart_queue where bucket = {BUCKET} and id = any($1::bigint[]))
update {SCHEMA}.zart_executions e
set status = m.status, epoch = m.epoch, output = m.output, crashes = 0, started_at = now(), finished_at = now()
from unnest($1::bigint[], $2::smallint[], $3::int[], $4::json[]) m(id, status, epoch, output)
where e.bucket = {BUCKET} and e.id = m.id
"""

# The plans that zart_tick_1 pins for itself: by primary key, planned once.
_PLANNER = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
_RUN = _EPOCH = 1
_SECONDS = 1e-4


@dataclass(frozen=True, slots=True)
class _Batch:
    """The parameters of one batch's statements."""

    claim: tuple[Any, ...]
    checkpoints: list[tuple[Any, ...]]
    finish: tuple[Any, ...]


def drain(database: Database, scenario: Scenario, *, procs: int, batch: int) -> Drain:
    """Write what the engine would write for all executions of the database.

    Args:
        procs: client processes, one connection each.
        batch: executions per statement.

    Raises:
        BenchError: a client process failed.
    """
    with ExitStack() as clients:
        pipes = [clients.enter_context(_Client(database, scenario, part, procs, batch)) for part in range(procs)]
        pids = [client.pid for client in pipes]
        for client in pipes:
            client.hear()
        before = cpu_times(database.postmaster, pids)
        for client in pipes:
            client.go()
        spans = [client.hear() for client in pipes]
        cpu = cpu_times(database.postmaster, pids).since(before)
    return Drain(max(end for _, end in spans) - min(begin for begin, _ in spans), cpu)


class _Client:
    """A forked process that writes its part of the batches when told to; it lives until the end of the `with`."""

    def __init__(self, database: Database, scenario: Scenario, part: int, parts: int, batch: int) -> None:
        self._pipe, others = multiprocessing.Pipe()
        write = partial(_write, others, database, scenario, part, parts, batch)
        self.pid = fork(partial(_serve, self._pipe, write))
        others.close()

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        os.waitpid(self.pid, 0)

    def hear(self) -> tuple[float, float]:
        """Wait for its next word: that it is ready, then when it began and ended."""
        try:
            word: tuple[float, float] = self._pipe.recv()
        except EOFError:
            raise BenchError("a client process of the floor failed; its error is above") from None
        return word

    def go(self) -> None:
        """Have it begin."""
        self._pipe.send(None)


def _serve(parents: Pipe, write: Callable[[], Coroutine[Any, Any, None]]) -> int:
    parents.close()
    uvloop.run(write())
    return 0


async def _write(pipe: Pipe, database: Database, scenario: Scenario, part: int, parts: int, batch: int) -> None:
    """A client's life: get ready, wait for the word, write, tell the times, stay until nobody asks any more."""
    connection = await asyncpg.connect(database.dsn, server_settings=_PLANNER)
    claim, checkpoint, finish = [await connection.prepare(text) for text in (_CLAIM, _CHECKPOINT, _FINISH)]
    batches = await _batches(connection, scenario, part, parts, batch)
    gc.collect()
    gc.freeze()
    pipe.send((0.0, 0.0))
    pipe.recv()
    begin = time.monotonic()
    for each in batches:
        await claim.fetch(*each.claim)
        for rows in each.checkpoints:
            await checkpoint.fetch(*rows)
        await finish.fetch(*each.finish)
    pipe.send((begin, time.monotonic()))
    with contextlib.suppress(EOFError):
        pipe.recv()
    await connection.close()


async def _batches(
    connection: asyncpg.Connection, scenario: Scenario, part: int, parts: int, batch: int
) -> list[_Batch]:
    """Every `parts`-th batch of the executions, in the order in which they were started."""
    rows = await connection.fetch(f"select id, execution_id from {SCHEMA}.zart_executions order by id")
    known = [(row["id"], number_of(row["execution_id"])) for row in rows]
    worker, keys = secrets.randbits(63), step_keys(scenario)
    starts = range(part * batch, len(known), parts * batch)
    return [_batch(scenario, keys, worker, known[start : start + batch]) for start in starts]


def _batch(scenario: Scenario, keys: Sequence[int], worker: int, known: Sequence[tuple[int, int]]) -> _Batch:
    ids, size = [row[0] for row in known], len(known)
    status, kind, outcome = int(StoredStatus.COMPLETED), int(Kind.STEP), int(Outcome.COMPLETED)
    checkpoints = [
        (
            ids,
            [_RUN] * size,
            [key] * size,
            [_EPOCH] * size,
            [kind] * size,
            [outcome] * size,
            [1] * size,
            [_SECONDS] * size,
            [step.name] * size,
            [PLAIN.encode(step.result(number)).decode() for _, number in known],
        )
        for key, step in zip(keys, scenario.steps, strict=True)
    ]
    outputs = [PLAIN.encode(scenario.output(number)).decode() for _, number in known]
    return _Batch((worker, ids), checkpoints, (ids, [status] * size, [_EPOCH] * size, outputs))
