"""Where it is measured: a temporary PostgreSQL with production's durability, and a fresh database for each drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import asyncpg

from bench.scenario import Scenario, execution_id
from bench.workflows import Order
from zart.codec import step_key
from zart.embedded import EmbeddedPostgres
from zart.model import KeySpace, StoredStatus
from zart.scheduler import PostgresScheduler

T = TypeVar("T")

SCHEMA = "zart"
BUCKET = 0

_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_preload_libraries": "pg_stat_statements",
}
_TOLD_SETTINGS = (
    "autovacuum", "checkpoint_timeout", "fsync", "full_page_writes", "io_method", "jit", "max_wal_size",
    "shared_buffers", "synchronous_commit", "track_io_timing", "wal_buffers", "wal_compression", "wal_level",
    "wal_sync_method",
)  # fmt: skip
_TEMPLATE = "bench_template"

_COUNT = """
select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as wal_bytes,
       (select xact_commit from pg_stat_database where datname = current_database()) as commits,
       (select coalesce(sum(s.calls), 0)::bigint from public.pg_stat_statements s
        join pg_database d on d.oid = s.dbid and d.datname = current_database()) as statements,
       (select sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables) as rows_written
"""

_OTHERS = """
select count(*) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""

_CHECK = f"""
with journal as (
  select t.id, count(*) as steps,
         sum(hashtextextended(concat_ws('|', t.bucket, t.run, t.step_key, t.epoch, t.kind, t.status, t.attempts, t.name,
             t.result, t.due is null, t.seconds is null, t.error is null), 0)::numeric) as digest
  from {SCHEMA}.zart_tasks t group by t.id)
select count(*) filter (where e.status = $1 and e.finished_at is not null and e.started_at is not null) as completed,
       count(*) filter (where coalesce(j.steps, 0) = $2) as with_all_steps,
       (select count(*) from {SCHEMA}.zart_queue) as left_over,
       sum(hashtextextended(concat_ws('|', e.bucket, e.execution_id, e.run, e.epoch, e.status, e.attempt, e.crashes,
           e.output, e.error, j.digest), 0)::numeric)::text as digest
from {SCHEMA}.zart_executions e left join journal j on j.id = e.id
"""


class BenchError(Exception):
    """A measurement did not come about, or did not do what it measures; the text says what happened."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the server has counted for one database until now; WAL for the whole server."""

    wal_bytes: int
    commits: int
    statements: int
    rows_written: int

    def since(self, before: Counters) -> Counters:
        """What was counted between `before` and this."""
        return Counters(
            wal_bytes=self.wal_bytes - before.wal_bytes,
            commits=self.commits - before.commits,
            statements=self.statements - before.statements,
            rows_written=self.rows_written - before.rows_written,
        )


class Rig:
    """A temporary server; use it in `with`. Synchronous and without threads, so that callers may fork.

    Raises (on entry):
        DatabaseError: the server cannot be started.
    """

    def __init__(self) -> None:
        self._server = EmbeddedPostgres(settings=_SETTINGS)
        self._made = 0

    def __enter__(self) -> Rig:
        self._server.start()
        try:
            _ask(self._server.dsn, _make_template)
            asyncio.run(_migrate(self._dsn(_TEMPLATE)))
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop()

    def settings(self) -> dict[str, str]:
        """The server's settings that bear on speed and durability."""
        return _ask(self._server.dsn, _told_settings)

    def version(self) -> str:
        """The server's version."""

        async def ask(connection: asyncpg.Connection) -> str:
            version: str = await connection.fetchval("show server_version")
            return version

        return _ask(self._server.dsn, ask)

    @contextmanager
    def database(self) -> Generator[Database, None, None]:
        """A migrated database without executions, dropped at the end."""
        self._made += 1
        name = f"bench_{self._made}"
        _ask(self._server.dsn, lambda connection: connection.execute(f"create database {name} template {_TEMPLATE}"))
        try:
            yield Database(self._dsn(name), self._server.pid)
        finally:
            _ask(self._server.dsn, lambda connection: connection.execute(f"drop database {name} with (force)"))

    def _dsn(self, name: str) -> str:
        return self._server.dsn.replace("/postgres?", f"/{name}?")


@dataclass(frozen=True, slots=True)
class Database:
    """One database of the rig.

    Args:
        dsn: its URL.
        postmaster: process id of its server.
    """

    dsn: str
    postmaster: int

    def start(self, scenario: Scenario, executions: int) -> None:
        """Start this many executions, as a user would, and bring the database to rest."""
        asyncio.run(_start(self.dsn, scenario, executions))
        _ask(self.dsn, _settle)

    def counters(self) -> Counters:
        """What the server has counted, once all other sessions have ended and told it what they did.

        Raises:
            BenchError: a session does not end.
        """
        return _ask(self.dsn, _count)

    def check(self, scenario: Scenario, executions: int) -> str:
        """Make sure that every execution completed and kept each step once; give a digest of all that was written.

        Times and worker ids are not part of it: two drains that wrote the same rows have the same digest.

        Raises:
            BenchError: it is not so.
        """
        status, steps = int(StoredStatus.COMPLETED), len(scenario.steps)
        found = _ask(self.dsn, lambda connection: connection.fetchrow(_CHECK, status, steps))
        if found is None or not found["completed"] == found["with_all_steps"] == executions or found["left_over"]:
            facts = dict(found or {})
            raise BenchError(f"{executions} executions should have completed with {steps} steps each, found {facts}")
        digest: str = found["digest"]
        return digest


def step_keys(scenario: Scenario) -> list[int]:
    """The keys of a scenario's steps, in order."""
    return [step_key(KeySpace.STEP, step.name) for step in scenario.steps]


def _ask(dsn: str, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    async def ask() -> T:
        connection = await asyncpg.connect(dsn)
        try:
            return await question(connection)
        finally:
            await connection.close()

    return asyncio.run(ask())


async def _make_template(connection: asyncpg.Connection) -> None:
    await connection.execute(f"create database {_TEMPLATE}")


async def _migrate(dsn: str) -> None:
    async with PostgresScheduler.connect(dsn, schema=SCHEMA) as scheduler:
        await scheduler.migrate()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("create extension pg_stat_statements schema public")
    finally:
        await connection.close()


async def _start(dsn: str, scenario: Scenario, executions: int) -> None:
    items = ((execution_id(number), Order(number)) for number in range(1, executions + 1))
    async with PostgresScheduler.connect(dsn, schema=SCHEMA) as scheduler:
        await scheduler.start_many(scenario.durable, items)


async def _settle(connection: asyncpg.Connection) -> None:
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")


async def _count(connection: asyncpg.Connection) -> Counters:
    deadline = time.monotonic() + 10
    while await connection.fetchval(_OTHERS):
        if time.monotonic() > deadline:
            raise BenchError("a session of the measured processes does not end")
        await asyncio.sleep(0.02)
    row: Any = await connection.fetchrow(_COUNT)
    return Counters(**row)


async def _told_settings(connection: asyncpg.Connection) -> dict[str, str]:
    rows = await connection.fetch(
        "select name, current_setting(name) as value from unnest($1::text[]) s(name) order by name", _TOLD_SETTINGS
    )
    return {row["name"]: row["value"] for row in rows}
