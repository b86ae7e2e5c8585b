"""A real Prometheus scrapes a fleet that has everything happen to it: every panel has something to draw."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

import zart
from tests.monitoring.app import dies, fails, greets
from tests.support.dashboards import DIRECTORY, ROOT, expressions
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from tests.support.prometheus import MISSING, NO_EXPORTER, Prometheus, postgres_exporter
from zart.model import ExecutionStatus

RULES = ROOT / "grafana" / "alerts.yaml"
QUERIES = Path(__file__).with_name("queries.yaml")
LOAD = 20

HAPPENED = {
    "sum(zart_worker_deaths_total)": 3,  # one is killed by the test, two by the execution that dies
    "sum(zart_executions_taken_over_total)": 1,
    'sum(zart_workers{state="ready"})': 2,
    'sum(zart_executions_ended_total{task="greets", outcome="completed"})': LOAD,
    'sum(zart_executions_ended_total{task="fails", outcome="failed"})': 1,
    'sum(zart_executions_retried_total{task="fails"})': 1,
    'sum(zart_step_retries_total{task="greets"})': LOAD,
    'sum(zart_executions_parked_total{task="greets"})': LOAD,
    'sum(zart_steps_replayed_total{task="greets"})': LOAD,
    'sum(zart_queue_executions{state="quarantined"})': 1,
    'sum(zart_queue_executions{state="unclaimable"})': 1,
    "sum(zart_queue_oldest_ready_seconds)": 1,
    'sum(ALERTS{alertname="ZartQuarantined"})': 1,
    'sum(ALERTS{alertname="ZartUnclaimableWork"})': 1,
}
"""What Prometheus must have been told, and at least how much of it."""

pytestmark = pytest.mark.skipif(bool(MISSING or NO_EXPORTER), reason=MISSING or NO_EXPORTER)


async def test_every_panel_and_alert_finds_its_figures(database: Database, tmp_path: Path) -> None:
    with Fleet(
        database, app="tests.monitoring.app:registry", config={"max_crashes": 1}, options={"http_port": 0}
    ) as fleet:
        [victim, *_] = await fleet.ready()
        address = _address(fleet)
        with (
            postgres_exporter(_libpq(database), QUERIES) as exporter,
            Prometheus(tmp_path, {"zart": [address], "postgresql": [exporter.address]}, [RULES]) as prometheus,
        ):
            await eventually(lambda: prometheus.ask("zart_build_info"))
            async with zart.PostgresScheduler.connect(database.dsn) as scheduler, _load(scheduler):
                await scheduler.start("nobody-serves-it", "unheard-of", None)
                await scheduler.start_for(dies, "poison")
                os.kill(victim, signal.SIGKILL)
                await _vacuum(database)
                assert (await scheduler.wait("poison", timeout=30)).status == ExecutionStatus.QUARANTINED
                await _all(prometheus, HAPPENED)
                await _all(prometheus, dict.fromkeys(_drawn(), -math.inf))
                await _all(prometheus, dict.fromkeys(_alerted(), -math.inf))


async def _all(prometheus: Prometheus, least: Mapping[str, float]) -> None:
    """Returns when each expression gives a number that is no less than asked."""
    left = dict(least)

    async def answered() -> bool:
        for expression, value in [*left.items()]:
            if any(number >= value for number in _numbers(await prometheus.ask(expression))):
                del left[expression]
        return not left

    with contextlib.suppress(AssertionError):
        await eventually(answered, within=30, every=0.5)
    assert [*left] == []


def _numbers(samples: list[dict[str, Any]]) -> Iterator[float]:
    return (number for sample in samples if math.isfinite(number := float(sample["value"][1])))


def _drawn() -> list[str]:
    return [each.text for each in itertools.chain(*map(expressions, sorted(DIRECTORY.glob("*.json"))))]


def _alerted() -> list[str]:
    """Every series that an alert asks for."""
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    found = [re.findall(r"\b(?:zart_\w+|up)(?:\{[^}]*\})?", rule["expr"]) for rule in group["rules"]]
    return sorted({*itertools.chain(*found)})


@contextlib.asynccontextmanager
async def _load(scheduler: zart.PostgresScheduler) -> AsyncIterator[None]:
    """Executions that are started all the time."""

    async def start() -> None:
        for n in itertools.count():
            await scheduler.start_many(greets, [(f"greets-{n}-{i}", i) for i in range(LOAD // 4)])
            await scheduler.start_for(fails, f"fails-{n}")
            await asyncio.sleep(0.2)

    starting = asyncio.create_task(start())
    try:
        yield
    finally:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting


async def _vacuum(database: Database) -> None:
    connection = await database.connect()
    await connection.execute("vacuum zart.zart_queue")
    await connection.close()


def _address(fleet: Fleet) -> str:
    """Where the runner serves its metrics, as its log says."""
    found = re.search(r"metrics and health on http://(\S+)", fleet.log())
    assert found, fleet.log()
    return found[1]


def _libpq(database: Database) -> str:
    url = urlsplit(database.dsn)
    place = parse_qs(url.query)
    return f"host={place['host'][0]} port={place['port'][0]} user=postgres dbname={url.path[1:]} sslmode=disable"
