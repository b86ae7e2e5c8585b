"""What log lines carry, and which are written when many processes have the same trouble."""

from __future__ import annotations

import json
import logging
from typing import Any

import asyncpg
import pytest

import zart
from tests.support import telling
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, start

JSON = {"log_format": "json"}


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def told(self, message: str) -> list[dict[str, Any]]:
        """The fields of the records of this message."""
        return [vars(record) for record in self.records if record.getMessage() == message]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    """A handler with the filter, on the loggers of the program."""
    made = Records()
    made.addFilter(zart.LogContext())
    monkeypatch.setattr(telling.log, "level", logging.INFO)
    monkeypatch.setattr(telling.log, "handlers", [made])
    telling.log.manager._clear_cache()  # type: ignore[attr-defined]
    return made


def lines_of(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


async def test_records_carry_whose_code_wrote_them(database: Database, records: Records) -> None:
    async with Engine(database, [telling.telling], workers=1) as engine:
        await engine.start("t", telling.telling)
        await engine.ended("t")
        worker = engine.loops[0].place.worker_id
    body = {"execution": "t", "task": "telling", "run": 1, "epoch": 1, "attempt": 0, "worker": worker}
    for message in ("beginning", "beside", "in a thread of the body"):
        [told] = records.told(message)
        assert body.items() <= told.items()
        assert "step" not in told
    assert [told["attempt"] for told in records.told("trying")] == [0, 1]
    assert {(told["step"], told["execution"], told["number"]) for told in records.told("trying")} == {
        ("flaky-1", "t", 1)
    }
    [in_thread] = records.told("counting")
    assert (in_thread["step"], in_thread["epoch"]) == ("count", 1)
    assert in_thread["run"] == "my own", "what the program says itself stays"
    telling.log.info("outside")
    [outside] = records.told("outside")
    assert not body.keys() & outside.keys()


def test_the_filter_is_a_processor_too() -> None:
    assert zart.LogContext()(None, "info", {"event": "outside"}) == {"event": "outside"}


async def test_a_fleets_json_lines_carry_whose_code_wrote_them(database: Database) -> None:
    with Fleet(database, app="tests.support.telling:registry", procs=1, options=JSON) as fleet:
        await fleet.ready()
        await start(database, "telling", {"t": None})
        await eventually(lambda: "counting" in fleet.log())
        log = fleet.stop()[2]
    told = {(line["event"], line.get("attempt")): line for line in lines_of(log)}
    assert len(lines_of(log)) == len(log.splitlines())
    whose = {"execution": "t", "task": "telling", "epoch": 1, "worker": 0}
    expected = {"run": 1, "step": "flaky-1", "number": 1, "logger": "shop.orders", "level": "info"}
    assert (whose | expected).items() <= told["trying", 1].items()
    assert whose.items() <= told["counting", 0].items()
    assert told["stopping (SIGTERM)", None]["reason"] == "SIGTERM"


async def test_a_failed_execution_is_told_with_its_facts(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    async with Engine(database, [failing]) as engine:
        await engine.start("f", failing)
        await engine.ended("f")
        await eventually(lambda: caplog.records)
    [record] = [record for record in caplog.records if "failed" in record.message]
    assert record.message == "execution 'f' failed: zart.errors.StepFailed: step 'break' failed: ValueError: no"
    facts = {"execution": "f", "task": "failing", "run": 1, "epoch": 1, "step": "break"}
    assert facts.items() <= vars(record).items()


@zart.zart_step("break")
async def break_it() -> None:
    raise ValueError("no")


@zart.zart_durable("failing")
async def failing() -> None:
    await break_it()


async def test_a_lifespan_that_fails_writes_one_traceback_and_no_values(database: Database) -> None:
    secret = "hunter2-in-the-url"
    url = f"postgresql://me:{secret}@db.example/app"
    options = {**JSON, "log_level": "debug"}
    with Fleet(
        database, app="tests.support.telling:broken", options=options, environment={"EFFECTS_DSN": url}
    ) as fleet:
        code, _, log = fleet.end(60)
    assert code == 3
    tracebacks = [line for line in lines_of(log) if "exception" in line]
    assert [line["event"] for line in tracebacks] == ["the registry's lifespan failed"]
    assert tracebacks[0]["exception"][0]["exc_type"] == "ConnectionRefusedError"
    assert "lifespan failed: ConnectionRefusedError: no cache at postgresql://***@db.example/app" in log
    assert "Traceback" not in log
    assert secret not in log


async def test_a_schema_that_is_dropped_under_a_fleet_is_told_in_a_line(
    database: Database, connection: asyncpg.Connection
) -> None:
    with Fleet(database, procs=3) as fleet:
        await fleet.ready()
        await connection.execute("drop schema zart cascade")
        code, _, log = fleet.end(60)
    assert code == 3
    assert "Traceback" not in log
    told = [line for line in log.splitlines() if "zart migrate" in line]
    assert [sum(who in line for line in told) for who in ("worker ", "supervisor", "zart-runner: ")] == [1, 1, 1], log
    assert len(told) == 3, log
