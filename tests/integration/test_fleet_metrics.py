"""What a fleet counts, read by a scrape, against what the database says; also when a worker is killed in between."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, start
from tests.support.scraped import Labels, scrape
from zart.model import Kind, Outcome, StoredStatus

HELD = 6
Page = dict[tuple[str, Labels], float]


def value(page: Page, name: str, **labels: str) -> float:
    return page.get((name, frozenset(labels.items())), 0.0)


def by_task(page: Page, name: str, **labels: str) -> dict[str, float]:
    """A family's values other than 0 by task, of these other labels."""
    found: dict[str, float] = {}
    for (sample, of), count in page.items():
        others = dict(of)
        task = others.pop("task", "")
        if sample == name and others == labels and count:
            found[task] = count
    return found


async def _in_database(connection: asyncpg.Connection, text: str, *arguments: int) -> dict[str, float]:
    rows = await connection.fetch(text.replace("$e", "zart.zart_executions e"), *arguments)
    return {row[0]: float(row[1]) for row in rows}


async def _compare(connection: asyncpg.Connection, page: Page) -> None:
    """Every count of executions and steps is that of the database; all executions have ended."""
    ended = "select e.task_name, count(*) from $e where e.status = $1 group by 1"
    for outcome, status in (("completed", StoredStatus.COMPLETED), ("failed", StoredStatus.FAILED)):
        counted = by_task(page, "zart_executions_ended_total", outcome=outcome)
        assert counted == await _in_database(connection, ended, status), outcome
    # The epoch of an execution that has ended is how often it was claimed.
    claimed = await _in_database(connection, "select e.task_name, sum(e.epoch) from $e group by 1")
    assert by_task(page, "zart_executions_claimed_total") == claimed
    resumed = await _in_database(
        connection, "select e.task_name, sum(e.epoch - 1) from $e where e.epoch > 1 group by 1"
    )
    assert by_task(page, "zart_executions_resumed_total") == resumed
    steps = await _in_database(
        connection,
        "select e.task_name, count(*) from $e join zart.zart_tasks t on t.id = e.id where t.kind = $1 and t.status = $2"
        " group by 1",
        Kind.STEP,
        Outcome.COMPLETED,
    )
    assert by_task(page, "zart_steps_ended_total", outcome="completed") == steps
    tries = await _in_database(
        connection, "select e.task_name, count(*) from $e join zart.zart_attempts a on a.id = e.id group by 1"
    )
    assert by_task(page, "zart_step_retries_total") == tries
    every = Counter(steps) + Counter(tries)
    assert by_task(page, "zart_step_duration_seconds_count") == every
    seconds = await connection.fetchval(
        "select sum(extract(epoch from finished_at - created_at))::float8 from zart.zart_executions"
    )
    assert sum(by_task(page, "zart_execution_duration_seconds_sum").values()) == pytest.approx(seconds, abs=10)


async def _watch(read: Callable[[], Page], fallen: list[object]) -> None:
    """Note whatever counter falls, while this runs."""
    before: Page = {}
    while True:
        now = await asyncio.to_thread(read)
        fallen += [
            (key, count, now.get(key))
            for key, count in before.items()
            if key[0].endswith(("_total", "_count", "_bucket")) and now.get(key, -1.0) < count
        ]
        before = now
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("preload", [False, True], ids=["imported in workers", "preloaded"])
async def test_counters_are_those_of_the_database_also_after_a_kill(
    database: Database, connection: asyncpg.Connection, tmp_path: Path, preload: bool
) -> None:
    hold, tries, port = tmp_path / "hold", tmp_path / "tries", tmp_path / "port"
    hold.touch()
    tries.mkdir()
    environment = {"HOLD": str(hold), "TRIES": str(tries), "SCRAPED": str(port), "TMPDIR": str(tmp_path)}

    def read() -> Page:
        return scrape(port)

    def holding() -> list[int]:
        return [int(text) for path in tries.iterdir() if (text := path.read_text())]

    def value_files() -> list[Path]:
        return list(tmp_path.glob("zart-metrics-*/*"))

    fallen: list[object] = []
    with Fleet(
        database,
        app="tests.support.counted",
        children="tests.support.scraped",
        config={"park_grace": 0},
        options={"preload": preload},
        environment=environment,
    ) as fleet:
        workers = await fleet.ready()
        await eventually(port.exists)
        watching = asyncio.create_task(_watch(read, fallen))
        for task, count in (("sums", 40), ("retries", 5), ("fails", 3), ("parks", 4)):
            await start(database, task, {f"{task}-{n}": n for n in range(count)})
        await all_ended(database)
        await _compare(connection, read())
        parked = by_task(read(), "zart_executions_parked_total")["parks"]
        assert parked >= 4  # one that is woken a little early is parked again
        assert by_task(read(), "zart_executions_claimed_total")["parks"] == parked + 4

        await start(database, "held", {f"held-{n}": n for n in range(HELD)})
        await eventually(lambda: len(holding()) == HELD)
        await eventually(lambda: value(read(), "zart_executions_in_flight") == HELD)
        victim, lost = Counter(holding()).most_common(1)[0]
        assert value(read(), "app_busy") == HELD
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: len(holding()) == HELD + lost)
        await eventually(lambda: value(read(), "app_busy") == HELD)
        hold.unlink()
        await all_ended(database)
        await fleet.ready()
        await eventually(lambda: value(read(), "zart_executions_in_flight") == 0)
        page = read()
        watching.cancel()
        assert fallen == []

        await _compare(connection, page)
        assert value(page, "zart_worker_deaths_total") == 1
        assert value(page, "zart_workers_forked_total") == 3
        assert value(page, "zart_executions_taken_over_total") == lost
        assert [value(page, "zart_workers", state=state) for state in ("starting", "ready", "draining")] == [0, 2, 0]
        assert value(page, "zart_slots") == 512
        assert value(page, "zart_claims_lost_total") == 0

        assert value(page, "app_orders_total", kind="add") == 120
        assert value(page, "app_orders_total", kind='ho"ld\n') == HELD + lost
        assert value(page, "app_size_count") == 120 + HELD + lost
        assert value(page, "app_size_sum") == 40 * 3 + 100 * (HELD + lost)
        assert value(page, "app_size_bucket", le="10.0") == 120
        assert value(page, "app_busy") == 0
        assert {dict(labels)["pid"] for name, labels in page if name == "app_last"} - {"runner"} == {"0", "1"}
        assert 0 < len(value_files()) <= 5 * (len(workers) + 1)
        code, _, log = fleet.stop()
        assert code == 0
    assert log.count("the application's metric 'zart_executions_claimed' is left out") == 1
    assert value_files() == []
