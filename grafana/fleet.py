"""The fleet: are the runners well, do they keep up, what holds them back."""

from __future__ import annotations

from grafana.model import (
    BAD_ABOVE_ZERO,
    BYTE_RATE,
    COUNT,
    RATE,
    SECONDS,
    SHARE,
    Dashboard,
    Panel,
    Query,
    Row,
    mean,
    quantile,
    rate,
    series,
    stat,
)
from grafana.words import FLEET, INSTANCE, JOB, OF_JOB, QUEUE, needs_a_person, oldest_ready, time_to_clear

_READY = f'zart_workers{{{FLEET}, state="ready"}}'
_WORKERS = f"zart_workers{{{FLEET}}}"
_IN_FLIGHT = f"zart_executions_in_flight{{{FLEET}}}"
_SLOTS = f"zart_slots{{{FLEET}}}"


def _rare(counter: str, legend: str) -> tuple[str, str]:
    """By how much a counter of rare events has grown at each runner in 5 minutes."""
    return f"sum by (instance) (increase({counter}{{{FLEET}}}[5m]))", f"{{{{instance}}}} {legend}"


def _halves_and_tails(histogram: str, *by: str) -> tuple[tuple[str, str], ...]:
    """The median and the 99th percentile."""
    before = "".join(f"{{{{{label}}}}} " for label in by)
    return tuple((quantile(q, histogram, FLEET, *by), f"{before}p{q * 100:.0f}") for q in (0.5, 0.99))


_FIRST = (
    stat(
        "Alerts",
        "How many of zart's alerts fire. Above 0: open Prometheus' or Alertmanager's page of alerts; each names what "
        "to do. Without the rule file in Prometheus this stays 0.",
        COUNT,
        'count(ALERTS{alertname=~"Zart.*", alertstate="firing"}) or vector(0)',
        BAD_ABOVE_ZERO,
    ),
    stat(
        "Workers ready",
        "Share of the worker processes that are registered and claim work. Below 100 % for a moment while workers "
        "start, drain or are replaced. When it stays low, look at 'Deaths and forks' and the runners' logs; at 0 "
        "nothing runs.",
        SHARE,
        f"sum({_READY}) / sum({_WORKERS})",
        ((None, "red"), (0.5, "yellow"), (0.99, "green")),
    ),
    time_to_clear(),
    oldest_ready(),
    stat(
        "Slots in use",
        "Executions that workers hold, of those that they may hold. Near 100 % with work waiting: more slots "
        "(`--concurrency`) help when steps mostly wait, more processes when they compute.",
        SHARE,
        f"sum({_IN_FLIGHT}) / sum({_SLOTS})",
        ((None, "green"), (0.8, "yellow"), (0.95, "red")),
    ),
    needs_a_person(),
)

_WORKER_PANELS = (
    series(
        "Workers by state",
        "Worker processes that start, that are ready, and that drain. A fleet that is well is all 'ready'. Many that "
        "start: they die again and again, or cannot reach the database. Many that drain for long: steps that take "
        "long while workers are replaced.",
        COUNT,
        (f"sum by (state) ({_WORKERS})", "{{state}}"),
        stacked=True,
    ),
    series(
        "In flight and slots",
        "Executions held by each runner's workers, and how many they may hold. At the limit with work waiting, slots "
        "are what is short. Far below it with work waiting, workers cannot claim: look at ticks, database errors and "
        "unclaimable work.",
        COUNT,
        (f"sum by (instance) ({_IN_FLIGHT})", "{{instance}} in flight"),
        (f"sum by (instance) ({_SLOTS})", "{{instance}} slots"),
    ),
    series(
        "Deaths and forks",
        "Workers that died, and processes made, in 5 minutes. Forks without deaths are starts, reloads and recycling. "
        "Deaths that go on are a crash loop: the log has a line `worker N ended (...)` for each, and the reason "
        "before it.",
        COUNT,
        _rare("zart_worker_deaths_total", "deaths"),
        _rare("zart_workers_forked_total", "forks"),
    ),
    series(
        "Taken over and lost",
        "In 5 minutes: executions that others took over because their worker died or its lease ran out, and turns "
        "dropped because their claim was gone. Cancelled executions count as lost claims too. More than that: workers "
        "that are killed, frozen or cut off from the database.",
        COUNT,
        _rare("zart_executions_taken_over_total", "taken over"),
        _rare("zart_claims_lost_total", "claims lost"),
    ),
    series(
        "Event loop lag",
        "How late the workers' event loops are. It is the time for which other executions of the same process stood "
        "still. Above 100 ms, bodies or `async` steps block: make blocking calls plain `def` steps. A loop that is "
        "blocked past `--stall-timeout` is killed, and its stack is in the log.",
        SECONDS,
        *_halves_and_tails("zart_loop_lag_seconds", "instance"),
    ),
    series(
        "Payload",
        "Inputs and journals read from the database, and inputs, results and errors written, as JSON. Much more read "
        "than written: executions with long histories are resumed again and again.",
        BYTE_RATE,
        (f"sum by (direction) ({rate('zart_payload_bytes_total', FLEET)})", "{{direction}}"),
    ),
)

_SPEED_PANELS = (
    series(
        "Claim latency",
        "From when an execution could run to its claim. It grows with the backlog; with none it is a few "
        "milliseconds. Up to the poll interval (1 s) with little load: hints do not arrive, see the log for 'no "
        "connection for hints'.",
        SECONDS,
        *_halves_and_tails("zart_claim_latency_seconds"),
    ),
    series(
        "Tick duration",
        "One group commit of a worker, there and back: the pace of everything durable. Tens of milliseconds under "
        "load are fine. Hundreds: the database is slow; look at its disk, its CPU, old transactions and dead tuples "
        "on the PostgreSQL dashboard.",
        SECONDS,
        *_halves_and_tails("zart_tick_duration_seconds", "instance"),
    ),
    series(
        "Ticks",
        "Group commits each second. Few and large under load is how it should be; many and small is a fleet with "
        "little to do. None while work waits: workers do not reach the database.",
        RATE,
        (f"sum by (instance) ({rate('zart_tick_duration_seconds_count', FLEET)})", "{{instance}}"),
    ),
    series(
        "Rows per tick",
        "Checkpoints and endings that one group commit carries. It rises with the load, and with it what a commit is "
        "worth. Near 2,000, the limit of one tick, commits are the bottleneck: more processes, or a faster disk for "
        "WAL.",
        COUNT,
        (mean("zart_tick_rows", FLEET, "instance"), "{{instance}} mean"),
        (quantile(0.99, "zart_tick_rows", FLEET, "instance"), "{{instance}} p99"),
    ),
    series(
        "Claims per tick",
        "Executions that one tick claims. Near 1 with work waiting: slots come free one by one, so the fleet is full.",
        COUNT,
        (mean("zart_claim_batch_size", FLEET, "instance"), "{{instance}} mean"),
        (quantile(0.99, "zart_claim_batch_size", FLEET, "instance"), "{{instance}} p99"),
    ),
    series(
        "Database errors and reconnects",
        "In 5 minutes: statements and connections that failed, and connections made again. Bursts go with restarts "
        "and failovers of the database. When it goes on, the log says what fails: `a tick failed (...)`.",
        COUNT,
        _rare("zart_database_errors_total", "errors"),
        _rare("zart_reconnects_total", "reconnects"),
    ),
)

_RUNNER_PANELS = (
    Panel(
        "table",
        "Runners",
        "Each runner as it is now. Differing versions are a rollout under way, or one that stopped half-way. A runner "
        "with fewer workers ready than the others, or deaths, is the one whose log to read.",
        COUNT,
        (
            Query(f"sum by (instance, version, python) (zart_build_info{{{FLEET}}})", "supervisors"),
            Query(f"sum by (instance) ({_READY})", "workers ready"),
            Query(f"sum by (instance) ({_IN_FLIGHT})", "in flight"),
            Query(f"sum by (instance) (increase(zart_worker_deaths_total{{{FLEET}}}[1h]))", "deaths in 1 h"),
            Query(quantile(0.99, "zart_loop_lag_seconds", FLEET, "instance"), "loop lag p99", SECONDS),
            Query(quantile(0.99, "zart_tick_duration_seconds", FLEET, "instance"), "tick p99", SECONDS),
        ),
        width=24,
        height=6,
        keys=("instance", "version", "python"),
    ),
    Panel(
        "bargauge",
        "Slots in use by runner",
        "How full each runner is. Runners of one fleet should be about equally full; one that stays empty while "
        "others are full serves other queues or tasks, or cannot claim.",
        SHARE,
        (Query(f"sum by (instance) ({_IN_FLIGHT}) / sum by (instance) ({_SLOTS})", "{{instance}}"),),
        width=12,
        thresholds=((None, "green"), (0.8, "yellow"), (0.95, "red")),
    ),
    series(
        "Sample of the queues",
        "How old the queues' figures are, and how long they took. One runner of the cluster samples. Older than a "
        "minute: nobody does, or the database does not answer, and all that is said of queues is old.",
        SECONDS,
        (f"min(zart_queue_sample_age_seconds{{{OF_JOB}}})", "age"),
        (f"max(zart_queue_sample_duration_seconds{{{OF_JOB}}})", "duration"),
        width=12,
    ),
)

DASHBOARD = Dashboard(
    "zart-fleet",
    "zart: fleet",
    "Runners and their workers: are they well, do they keep up, what holds them back.",
    (JOB, INSTANCE, QUEUE),
    (
        Row("Is it healthy, is it keeping up, what waits", _FIRST),
        Row("Workers", _WORKER_PANELS),
        Row("Speed", _SPEED_PANELS),
        Row("Runners", _RUNNER_PANELS),
    ),
)
