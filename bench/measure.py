"""Measurements: floor and engine in turn, several times in one run, and what comes out of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from bench import engine, floor
from bench.drain import Drain
from bench.machine import Machine, Versions
from bench.rig import BenchError, Counters, Database, Rig
from bench.scenario import Scenario

Side = Literal["floor", "engine"]

# As in peerbench: with more than this of a core gone to other programs, a figure says little.
MOST_OTHER_CORES = 0.2

_SPEED = "executions_per_second"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One drain in numbers; `cpu_us`, `wal_bytes`, `commits`, `statements` and `rows_written` are per execution.

    Args:
        worker_cpu_us: of the processes that do the work: the floor's clients, the engine's workers.
        supervisor_cpu_us: of the runner's arbiter and control.
        other_cores: processor time of programs that have no part in it, in cores.
        rows_per_tick, tick_ms, claim_latency_p50_s, claim_latency_p99_s: of the engine only; the latency is queueing.
    """

    seconds: float
    executions_per_second: float
    steps_per_second: float
    server_cpu_us: float
    worker_cpu_us: float
    supervisor_cpu_us: float
    wal_bytes: float
    commits: float
    statements: float
    rows_written: float
    other_cores: float
    rows_per_tick: float | None = None
    tick_ms: float | None = None
    claim_latency_p50_s: float | None = None
    claim_latency_p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A floor and an engine measured right after each other."""

    floor: Measurement
    engine: Measurement

    @property
    def ratio(self) -> float:
        """The engine's speed as a share of the floor's."""
        return self.engine.executions_per_second / self.floor.executions_per_second


@dataclass(frozen=True, slots=True)
class Result:
    """A run of one scenario. `noisy`: other programs took part in the use of the processors."""

    scenario: str
    date: datetime
    executions: int
    steps_per_execution: int
    procs: int
    batch: int
    floor_ratio: float
    ratios: tuple[float, ...]
    noisy: bool
    repeats: tuple[Repeat, ...]
    machine: Machine
    versions: Versions
    settings: dict[str, str]


def run(
    scenario: Scenario, *, executions: int, procs: int, repeats: int, batch: int, say: Callable[[str], None]
) -> Result:
    """Measure a scenario.

    Args:
        executions: how many per drain.
        procs: client processes of the floor, worker processes of the engine.
        repeats: how often floor and engine are drained, in turn.
        batch: executions per statement of the floor.
        say: takes one line about each drain as it ends.

    Raises:
        BenchError: a drain failed, or the two did not write the same rows.
    """
    with Rig() as rig:
        done = tuple(_repeats(rig, scenario, executions, procs, repeats, batch, say))
        settings, version = rig.settings(), rig.version()
    return Result(
        scenario=scenario.name,
        date=datetime.now(UTC),
        executions=executions,
        steps_per_execution=len(scenario.steps),
        procs=procs,
        batch=batch,
        floor_ratio=median_of(done, "engine", _SPEED) / median_of(done, "floor", _SPEED),
        ratios=tuple(repeat.ratio for repeat in done),
        noisy=any(side.other_cores > MOST_OTHER_CORES for repeat in done for side in (repeat.floor, repeat.engine)),
        repeats=done,
        machine=Machine.here(),
        versions=Versions.here(version),
        settings=settings,
    )


def values_of(repeats: Sequence[Repeat], side: Side, field: str) -> list[float]:
    """A field of one side over all repeats; without those that do not have it."""
    values = [getattr(getattr(repeat, side), field) for repeat in repeats]
    return [value for value in values if value is not None]


def median_of(repeats: Sequence[Repeat], side: Side, field: str) -> float:
    """The median of a field of one side."""
    return statistics.median(values_of(repeats, side, field))


def _repeats(
    rig: Rig, scenario: Scenario, executions: int, procs: int, repeats: int, batch: int, say: Callable[[str], None]
) -> Iterator[Repeat]:
    def drain_floor(database: Database) -> Drain:
        return floor.drain(database, scenario, procs=procs, batch=batch)

    def drain_engine(database: Database) -> Drain:
        return engine.drain(database, executions, procs=procs)

    for number in range(1, repeats + 1):
        by_floor, floor_digest = _measure(rig, scenario, executions, drain_floor)
        say(f"{number}/{repeats}  floor   {by_floor.executions_per_second:10,.0f} executions/s")
        by_engine, engine_digest = _measure(rig, scenario, executions, drain_engine)
        say(f"{number}/{repeats}  engine  {by_engine.executions_per_second:10,.0f} executions/s")
        if floor_digest != engine_digest:
            raise BenchError("floor and engine did not write the same rows: one of them has changed")
        yield Repeat(by_floor, by_engine)


def _measure(
    rig: Rig, scenario: Scenario, executions: int, drain: Callable[[Database], Drain]
) -> tuple[Measurement, str]:
    """One drain of a fresh database, and the digest of what it wrote."""
    with rig.database() as database:
        database.start(scenario, executions)
        before = database.counters()
        took = drain(database)
        counted = database.counters().since(before)
        digest = database.check(scenario, executions)
    return _measurement(took, counted, executions, len(scenario.steps)), digest


def _measurement(took: Drain, counted: Counters, executions: int, steps: int) -> Measurement:
    ticks = took.ticks
    return Measurement(
        seconds=took.seconds,
        executions_per_second=executions / took.seconds,
        steps_per_second=executions * steps / took.seconds,
        server_cpu_us=1e6 * took.cpu.server / executions,
        worker_cpu_us=1e6 * took.cpu.clients / executions,
        supervisor_cpu_us=1e6 * took.cpu.supervisors / executions,
        wal_bytes=counted.wal_bytes / executions,
        commits=counted.commits / executions,
        statements=counted.statements / executions,
        rows_written=counted.rows_written / executions,
        other_cores=took.cpu.others / took.seconds,
        rows_per_tick=None if ticks is None or not ticks.ticks else ticks.rows / ticks.ticks,
        tick_ms=None if ticks is None or ticks.duration_p50 is None else 1e3 * ticks.duration_p50,
        claim_latency_p50_s=None if ticks is None else ticks.claim_latency_p50,
        claim_latency_p99_s=None if ticks is None else ticks.claim_latency_p99,
    )
