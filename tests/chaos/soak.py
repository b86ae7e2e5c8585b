"""Every fault there is, in random order, under a load of every workflow, for as long as wanted.

    python -m tests.chaos.soak --minutes 30 --seed 7

Two runners of two workers each on a PostgreSQL of their own, which they reach through the fault proxy. What is done
follows from the seed alone; when each process comes by does not. The exit code is 1 when something did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg

from tests.chaos import app
from tests.chaos.claims import ClaimWatch
from tests.chaos.invariants import RESUMED, percentile, violations, watch
from tests.chaos.links import Links
from tests.chaos.load import Load
from tests.chaos.trouble import Trouble
from tests.support.database import SCHEMA, Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from zart import PostgresScheduler
from zart.embedded import EmbeddedPostgres
from zart.store.migrate import migrate

RUNNERS, PROCS, SLOTS = 2, 2, 32
LEASE = 2.0
CONFIG: dict[str, Any] = {"lease_timeout": LEASE, "max_concurrent_tasks": SLOTS, "park_grace": 0.1}
SWEEP = 2 * LEASE / 3 + 1.0
"""Two heartbeats that an observer watches a lease for, and one poll."""

BETWEEN = (0.0, 1.5)
CALM_AFTER = 10
DRAINED_WITHIN = 60.0  # longer than any of this takes: it finds what is stuck
PROBES = RUNNERS * PROCS * SLOTS * 5 // 4


@dataclass(slots=True)
class Report:
    """What a soak has done and found.

    Attributes:
        resumed: seconds from the moment that an execution was taken from its worker until the next one had it, the
            time that the database or every worker was away included: p50, p99.
    """

    seed: int
    minutes: float
    executions: int = 0
    endings: dict[str, int] = field(default_factory=dict[str, int])
    steps_begun: int = 0
    steps_begun_again: int = 0
    faults: dict[str, int] = field(default_factory=dict[str, int])
    resumed: tuple[float, float] = (0.0, 0.0)
    violations: list[str] = field(default_factory=list[str])
    log: str = ""

    def markdown(self) -> str:
        """As a section of docs/operations.md has it."""
        endings = ", ".join(f"{count:,} {status}" for status, count in self.endings.items())
        lines = [
            f"{self.minutes:g} minutes, seed {self.seed}:",
            "",
            "| what | how many |",
            "|---|---|",
            f"| executions started by callers | {self.executions:,} |",
            f"| executions ended, children included | {endings} |",
            f"| tries of steps begun | {self.steps_begun:,} |",
            f"| of these again after a crash | {self.steps_begun_again:,} |",
            f"| taken from a worker until claimed again | p50 {self.resumed[0]:.2f} s, p99 {self.resumed[1]:.2f} s |",
            *(f"| fault: {kind} | {count:,} |" for kind, count in self.faults.items()),
            f"| **violations** | **{len(self.violations)}** |",
        ]
        return "\n".join([*lines, "", *(f"- {line}" for line in self.violations)]).rstrip()


async def soak(seed: int, seconds: float) -> Report:
    """Run for so long; what did not hold is in the answer."""
    report = Report(seed, seconds / 60)
    directory = Path(tempfile.mkdtemp(prefix="zart-soak-"))
    report.log = str(directory / "runners.log")
    with EmbeddedPostgres() as server:
        database = Database(server.dsn, SCHEMA, 1)
        connection = await database.connect()
        await migrate(connection, SCHEMA, 1)
        await watch(connection)
        await connection.close()
        async with Links(database) as links, PostgresScheduler.connect(database.dsn) as scheduler:

            def make_runner() -> Fleet:
                return Fleet(
                    links.database,
                    procs=PROCS,
                    app="tests.chaos.app:registry",
                    config=CONFIG,
                    environment={"EFFECTS_DSN": database.dsn},
                    log_file=Path(report.log),
                )

            trouble = Trouble(server, database, links, random.Random(seed), make_runner, [], LEASE)
            load = Load(scheduler, random.Random(seed + 1))
            try:
                await _run(report, trouble, load, seconds)
            except Exception:  # of the soak itself: what was found until then is not lost
                report.violations.append(f"the soak came to its end: {traceback.format_exc()}")
            finally:
                await load.close()
                trouble.kill_all()
    if not report.violations:
        shutil.rmtree(directory)
    return report


async def _run(report: Report, trouble: Trouble, load: Load, seconds: float) -> None:
    for _ in range(RUNNERS):
        trouble.runners.append(trouble.start_runner())
    await trouble.heal()
    claims = ClaimWatch(trouble.database, trouble.troubled_until, LEASE + SWEEP)
    watching = asyncio.create_task(claims.run())
    starting = asyncio.create_task(load.run(seconds))
    try:
        await _make_trouble(trouble, seconds)
        await trouble.heal()
        await starting
        if not await load.all_ended(DRAINED_WITHIN):
            report.violations.append(f"executions are stuck: {await _stuck(trouble.database)}")
        report.violations += await _new_work_everywhere(trouble, load)
    finally:
        for task in (watching, starting):
            task.cancel()
        watched, _ = await asyncio.gather(watching, starting, return_exceptions=True)
    if not isinstance(watched, asyncio.CancelledError):
        report.violations.append(f"the watch over claims ended: {watched!r}")
    report.violations += claims.violations
    report.violations += await _stop(trouble)
    await _count(report, trouble, load)


async def _make_trouble(trouble: Trouble, seconds: float) -> None:
    """Faults until the time is up; now and then a calm, long enough for whatever a dead worker held to be freed."""
    end, calm = monotonic() + seconds, LEASE + SWEEP + 1
    while monotonic() < end - calm:
        await asyncio.sleep(trouble.chance.uniform(*BETWEEN))
        fault = await trouble.make()
        print(f"{time.strftime('%H:%M:%S')} {fault.kind}: {fault.whom}", flush=True)
        if len(trouble.faults) % CALM_AFTER == 0:
            await asyncio.sleep(calm)
    await asyncio.sleep(max(0.0, end - monotonic()))


async def _new_work_everywhere(trouble: Trouble, load: Load) -> list[str]:
    """Start more than all workers but one can hold, and see who shows up."""
    connection = await trouble.database.connect()
    began = await connection.fetchval("select clock_timestamp()")
    names = [f"probe-{each}" for each in range(PROBES)]
    await load.scheduler.start_many(app.probe, [(name, 1.5) for name in names])
    expected = {pid for runner in trouble.runners for pid in await runner.ready()}

    async def all_have() -> bool:
        done = await connection.fetchval(
            "select count(*) from zart.zart_executions where execution_id = any($1) and status = 1", names
        )
        return bool(done == PROBES)

    try:
        await eventually(all_have, within=DRAINED_WITHIN, every=0.05)
    except AssertionError:
        return ["after the last fault is healed new work succeeds: some of it has not"]
    rows = await connection.fetch("select distinct pid from effects where step = 'show-up' and began >= $1", began)
    await connection.close()
    absent = expected - {row["pid"] for row in rows}
    return [f"after the last fault is healed new work succeeds on every worker: not on {absent}"] if absent else []


async def _stop(trouble: Trouble) -> list[str]:
    """SIGTERM for all; they must end well, and leave nobody in the tables."""
    found: list[str] = []
    for runner in trouble.runners:
        code, _, _ = await asyncio.to_thread(runner.stop)
        if code:
            found.append(f"a runner that is told to stop ends well: exit code {code}")
    connection = await trouble.database.connect()
    if left := await connection.fetch("select id, pid, dead, lease_until from zart.zart_workers"):
        found.append(f"workers that ended leave no rows: {[dict(row) for row in left]}")
    await connection.close()
    return found


async def _count(report: Report, trouble: Trouble, load: Load) -> None:
    connection: asyncpg.Connection = await trouble.database.connect()
    report.executions = len(load.accepted) + PROBES
    report.faults = trouble.by_kind()
    names = {1: "completed", 2: "failed", 4: "cancelled", 5: "quarantined", 0: "live"}
    rows = await connection.fetch("select status, count(*) from zart.zart_executions group by 1 order by 1")
    report.endings = {names.get(row["status"], str(row["status"])): row["count"] for row in rows}
    report.steps_begun = await connection.fetchval("select count(*) from effects")
    report.steps_begun_again = await connection.fetchval(
        "select count(*) - count(distinct (execution_id, step, attempt)) from effects"
    )
    resumed = [row["seconds"] for row in await connection.fetch(RESUMED, 0.0, time.time())]
    report.resumed = percentile(resumed, 0.5), percentile(resumed, 0.99)
    report.violations += await violations(connection, load.accepted, trouble.faults, LEASE + SWEEP)
    await connection.close()


async def _stuck(database: Database) -> list[dict[str, Any]]:
    connection = await database.connect()
    rows = await connection.fetch(
        "select q.*, e.execution_id from zart.zart_queue q left join zart.zart_executions e using (id) limit 5"
    )
    await connection.close()
    return [dict(row) for row in rows]


def main() -> int:
    """The command; its report goes to stdout as Markdown, and to --json as that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--json", type=Path, help="a file for the report")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    report = asyncio.run(soak(given.seed, given.minutes * 60))
    print(f"\n{report.markdown()}")
    if given.json:
        given.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    if report.violations:
        again = f"python -m tests.chaos.soak --minutes {given.minutes:g} --seed {given.seed}"
        print(f"\nto do the same again: {again}\nthe runners' log: {report.log}", file=sys.stderr)
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
