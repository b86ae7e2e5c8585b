"""Spans of turns and steps, as an OpenTelemetry SDK exports them, and what links them over suspensions and crashes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from zart import PostgresScheduler, WorkerConfig, zart_durable, zart_step

AT_ONCE = WorkerConfig(lease_timeout="1h", park_grace=0)


class Traced:
    """A provider that the program has set up, and what it has exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        """Ended spans of this name, in the order in which they began."""
        found = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def ended(self, name: str) -> bool:
        """Whether the last turn of an execution is among them."""
        return any((span.attributes or {})["zart.outcome"] == "completed" for span in self.named(name))

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    made = Traced()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.provider)
    return made


def linked(span: ReadableSpan) -> dict[str, Any]:
    """Ids of the spans that a span has links to, by what the links say."""
    return {str((link.attributes or {})["zart.link"]): link.context.span_id for link in span.links}


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    number: int = span.context.span_id
    return number


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


@zart_step("look-up-{n}")
async def look_up(n: int) -> int:
    with trace.get_tracer("the user").start_as_current_span(f"query {n}"):
        return n


@zart_step("compute")
def compute() -> int:
    with trace.get_tracer("the user").start_as_current_span("in a thread"):
        return 2


@zart_step("flaky", retry="fixed(1, 1ms)")
async def flaky() -> int:
    if zart.context().current_attempt == 0:
        raise ConnectionError("the first time")
    return 3


@zart_durable("traced-work")
async def traced_work() -> int:
    return await look_up(1) + await compute() + await flaky()


@zart_durable("traced-waits")
async def traced_waits() -> str:
    await look_up(1)
    told = await zart.wait_for_event("told", str)
    await look_up(2)
    return told


@zart_durable("traced-fails")
async def traced_fails() -> None:
    raise ValueError("it cannot be done")


@zart_durable("traced-parent")
async def traced_parent() -> int:
    return await traced_work()


async def started(database: Database, provider: TracerProvider | None, durable: Any, execution_id: str) -> int:
    """Start an execution within a span of the caller's; the span's id."""
    async with PostgresScheduler.connect(database.dsn, schema=database.schema) as scheduler:
        if provider is None:
            await scheduler.start_for(durable, execution_id)
            return 0
        with provider.get_tracer("the caller").start_as_current_span("request") as span:
            await scheduler.start_for(durable, execution_id)
            return span.get_span_context().span_id


async def test_steps_are_spans_within_their_turn_and_the_users_spans_within_their_steps(
    database: Database, traced: Traced
) -> None:
    async with Engine(database, [traced_work]) as engine:
        request = await started(database, traced.provider, traced_work, "w")
        await engine.ended("w")
        await eventually(lambda: traced.named("turn traced-work"))
    turn = traced.one("turn traced-work")
    assert (turn.parent, turn.status.status_code) == (None, StatusCode.UNSET)
    assert linked(turn) == {"caller": request}
    assert turn.attributes == {
        "zart.execution.id": "w", "zart.task.name": "traced-work", "zart.queue": "default", "zart.run": 1,
        "zart.epoch": 1, "zart.attempt": 0, "zart.outcome": "completed",
    }  # fmt: skip
    failed, worked = traced.named("step flaky")
    steps = [traced.one("step look-up-{n}"), traced.one("step compute"), failed, worked]
    assert {parent_of(step) for step in steps} == {id_of(turn)}
    assert parent_of(traced.one("query 1")) == id_of(steps[0])
    assert parent_of(traced.one("in a thread")) == id_of(steps[1])
    assert steps[0].attributes == {
        "zart.execution.id": "w", "zart.task.name": "traced-work", "zart.step.name": "look-up-1", "zart.run": 1,
        "zart.epoch": 1, "zart.attempt": 0, "zart.outcome": "completed",
    }  # fmt: skip
    assert [(step.attributes or {})["zart.attempt"] for step in (failed, worked)] == [0, 1]
    assert failed.status.description == "ConnectionError: the first time"
    assert (failed.attributes or {})["error.type"] == "ConnectionError"
    assert [event.name for event in failed.events] == ["exception"]
    assert worked.status.status_code is StatusCode.UNSET


async def test_a_turn_is_linked_to_the_one_before_it_and_replayed_steps_have_no_span(
    database: Database, traced: Traced
) -> None:
    async with Engine(database, [traced_waits], config=AT_ONCE) as engine:
        request = await started(database, traced.provider, traced_waits, "s")
        await eventually(lambda: traced.named("turn traced-waits"))
        await engine.offer("s", "told", "yes")
        await engine.ended("s")
        await eventually(lambda: traced.ended("turn traced-waits"))
    turns = traced.named("turn traced-waits")
    assert [linked(turn) for turn in turns] == [
        {"caller": request},
        *({"caller": request, "turn before": id_of(before)} for before in turns[:-1]),
    ]
    assert {(turn.attributes or {})["zart.outcome"] for turn in turns[:-1]} == {"parked"}
    steps = traced.named("step look-up-{n}")
    assert [(step.attributes or {})["zart.step.name"] for step in steps] == ["look-up-1", "look-up-2"]
    assert [parent_of(step) for step in steps] == [id_of(turns[0]), id_of(turns[-1])]


async def test_a_child_is_linked_to_its_parents_turn(database: Database, traced: Traced) -> None:
    async with Engine(database, [traced_parent, traced_work], config=AT_ONCE) as engine:
        await started(database, traced.provider, traced_parent, "p")
        await engine.ended("p")
        await eventually(lambda: traced.ended("turn traced-parent"))
    assert linked(traced.one("turn traced-work")) == {"caller": id_of(traced.named("turn traced-parent")[0])}


async def test_a_failure_is_recorded_on_the_span_of_its_turn(database: Database, traced: Traced) -> None:
    async with Engine(database, [traced_fails]) as engine:
        await started(database, traced.provider, traced_fails, "f")
        await engine.ended("f")
        await eventually(lambda: traced.named("turn traced-fails"))
    turn = traced.one("turn traced-fails")
    assert turn.status.status_code is StatusCode.ERROR
    assert turn.status.description == "ValueError: it cannot be done"
    assert ((turn.attributes or {})["zart.outcome"], (turn.attributes or {})["error.type"]) == ("failed", "ValueError")
    [event] = turn.events
    assert "traced_fails" in str((event.attributes or {})["exception.stacktrace"])


async def test_without_a_provider_no_context_is_kept(database: Database) -> None:
    async with Engine(database, [traced_parent, traced_work]) as engine:
        await started(database, None, traced_parent, "n")
        await engine.ended("n")
        kept = await engine.connection.fetchval("select count(traceparent) from zart.zart_executions")
    assert kept == 0


def _exported(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


async def test_a_turn_is_linked_to_the_one_that_died_with_its_process(database: Database, tmp_path: Path) -> None:
    spans = tmp_path / "spans"
    fleet = Fleet(database, app="tests.support.traced:registry", environment={"SPANS": str(spans)}, procs=2)
    with fleet:
        await fleet.ready()
        async with PostgresScheduler.connect(database.dsn) as scheduler:
            await scheduler.start("k", "killed-once")
            await eventually((tmp_path / "spans.begun").exists)  # its second step; the first one is committed
            os.kill(_exported(spans)[0]["pid"], signal.SIGKILL)
            assert (await scheduler.wait("k", timeout="60s")).status is zart.ExecutionStatus.COMPLETED
        code, _, log = fleet.stop()
    assert code == 0, log
    found = {span["name"]: span for span in _exported(spans)}
    assert found["turn killed-once"]["attributes"]["zart.outcome"] == "completed"
    assert found["turn killed-once"]["pid"] != found["step first"]["pid"]
    # The turn that died was never exported; what it had done was, and its trace is the one that the link leads to.
    assert found["turn killed-once"]["links"] == {"turn before": found["step first"]["parent"]}
    assert found["step second"]["parent"] == found["turn killed-once"]["context"]
    assert [span["name"] for span in _exported(spans)].count("step first") == 1
    batched = [span["name"] for span in _exported(tmp_path / "spans.batched")]
    assert "turn killed-once" in batched, "sent as the worker drained"


class Broken(SpanProcessor):
    """Raises whenever a span begins or ends."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("on_end")


class Unstarted(Broken):
    """Raises when a span ends."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        return


async def test_a_provider_that_cannot_be_had_stops_no_work(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> None:
        raise StopIteration  # as for one that is named in the environment and not installed

    @zart_durable("works")
    async def works() -> int:
        return 1

    monkeypatch.setattr("zart.tracing._told", False)
    monkeypatch.setattr(trace, "get_tracer_provider", cannot)
    async with Engine(database, [works], config=AT_ONCE) as engine:
        async with PostgresScheduler.connect(database.dsn) as scheduler:
            await scheduler.start("b", "works", None)
        assert (await engine.ended("b")).output == 1


@pytest.mark.parametrize("processor", [Broken, Unstarted])
async def test_tracing_that_fails_stops_no_work(
    database: Database,
    traced: Traced,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    processor: type[SpanProcessor],
) -> None:
    @zart_step("one")
    async def one() -> int:
        return 1

    @zart_durable("works")
    async def works() -> int:
        first = await one()
        await zart.sleep("nap", "50ms")
        return first + await one().named("two")

    monkeypatch.setattr("zart.tracing._told", False)
    traced.provider.add_span_processor(processor())
    async with Engine(database, [works], config=AT_ONCE) as engine:
        await engine.start("a", works)
        assert (await engine.ended("a")).output == 2
    told = [record.message for record in caplog.records if record.name == "zart.tracing"]
    assert told == ["tracing failed; work goes on without some of its spans"]
