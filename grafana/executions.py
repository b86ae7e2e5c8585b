"""Executions: what waits in the queues, what ends and how, how long it takes, by task."""

from __future__ import annotations

from grafana.model import (
    BAD_ABOVE_ZERO,
    COUNT,
    RATE,
    SECONDS,
    SHARE,
    Dashboard,
    Panel,
    Query,
    Row,
    quantile,
    rate,
    series,
    stat,
)
from grafana.words import (
    INSTANCE,
    JOB,
    QUEUE,
    QUEUES,
    TASK,
    TASKS,
    in_state,
    needs_a_person,
    oldest_ready,
    time_to_clear,
)

_FAILED = f'{TASKS}, outcome="failed"'


def _by_task(counter: str, where: str = TASKS) -> str:
    return f"sum by (task) ({rate(counter, where)})"


def _durations(histogram: str) -> tuple[tuple[str, str], ...]:
    """The median and the 99th percentile of each task."""
    return tuple((quantile(q, histogram, TASKS, "task"), f"{{{{task}}}} p{q * 100:.0f}") for q in (0.5, 0.99))


_FAILING = f"{_by_task('zart_executions_ended_total', _FAILED)} / {_by_task('zart_executions_ended_total')}"

_FIRST = (
    stat(
        "Ended",
        "Executions that ended each second, with a result or without. 0 while work is ready: nothing runs; look at "
        "the fleet.",
        RATE,
        f"sum({rate('zart_executions_ended_total', TASKS)})",
        ((None, "blue"),),
    ),
    stat(
        "Failing",
        "Share of the executions that ended without a result. What is normal is for the application to say. A sudden "
        "rise is a deployment or something that it calls; 'Failing by task' names the task, `zart list --status "
        "failed` the executions.",
        SHARE,
        f"sum({rate('zart_executions_ended_total', _FAILED)}) / sum({rate('zart_executions_ended_total', TASKS)})",
        ((None, "green"), (0.05, "yellow"), (0.25, "red")),
    ),
    time_to_clear(),
    oldest_ready(),
    stat(
        "Expired",
        "Executions held by workers whose lease has run out: their host died or is cut off, and nobody has taken them "
        "over yet. For some seconds that is how takeover works. Longer: no runner is left that could, or the database "
        "is in trouble.",
        COUNT,
        in_state("expired"),
        BAD_ABOVE_ZERO,
    ),
    needs_a_person(),
)

_QUEUE_PANELS = (
    series(
        "Ready by queue",
        "Executions that could run and wait for a worker. A queue that grows while others are empty has too few "
        "workers of its own (`--queues`), or work of a higher priority before it.",
        COUNT,
        (in_state("ready", "queue"), "{{queue}}"),
        stacked=True,
    ),
    series(
        "Oldest ready by queue",
        "How long the oldest execution that could run has waited, by queue. This is what to scale on and to alert on: "
        "a long queue that moves is well, an old one is not.",
        SECONDS,
        (f"max by (queue) (zart_queue_oldest_ready_seconds{{{QUEUES}}})", "{{queue}}"),
    ),
    series(
        "Running and waiting",
        "Executions that workers hold, and executions that sleep or wait for an event, a child or a retry; those take "
        "no worker. Waiting that only grows: events that do not come.",
        COUNT,
        (in_state("running|waiting", "state"), "{{state}}"),
        stacked=True,
    ),
    series(
        "Quarantined, unclaimable, expired",
        "Should all be 0. Quarantined: `zart list --status quarantined`, mend, `zart release`. Unclaimable: deploy "
        "what serves the task, or start it in another queue. Expired for longer than the lease and a poll: see "
        "'Expired'.",
        COUNT,
        (in_state("quarantined|unclaimable|expired", "queue", "state"), "{{queue}} {{state}}"),
        width=16,
    ),
    Panel(
        "table",
        "Queues",
        "Each queue as it was when last sampled. What is in the columns on the right needs a person.",
        COUNT,
        (
            *(Query(in_state(state, "queue"), state) for state in ("ready", "running", "waiting")),
            Query(f"max by (queue) (zart_queue_oldest_ready_seconds{{{QUEUES}}})", "oldest ready", SECONDS),
            *(Query(in_state(state, "queue"), state) for state in ("expired", "quarantined", "unclaimable")),
        ),
        keys=("queue",),
    ),
)

_ENDING_PANELS = (
    series(
        "Ended by task and outcome",
        "Executions that ended each second. `completed` falling to 0 while a task's work is ready: its code or what "
        "it calls stands still.",
        RATE,
        (f"sum by (task, outcome) ({rate('zart_executions_ended_total', TASKS)})", "{{task}} {{outcome}}"),
    ),
    series(
        "Duration",
        "From the start of an execution to its end, with all that it waited. A p99 far above the median: retries, or "
        "executions that a crash has put back.",
        SECONDS,
        *_durations("zart_execution_duration_seconds"),
    ),
    Panel(
        "bargauge",
        "Failing by task",
        "Share of each task's executions that ended without a result. `zart list --status failed` names them, `zart "
        "history ID` says in which step.",
        SHARE,
        (Query(_FAILING, "{{task}}"),),
        thresholds=((None, "green"), (0.05, "yellow"), (0.25, "red")),
    ),
    series(
        "Claimed and resumed",
        "Executions taken up by workers, and those of them that had been taken up before: after a wait, a retry or a "
        "crash. Resumed without anything parked or retried: claims are lost or workers die.",
        RATE,
        (_by_task("zart_executions_claimed_total"), "{{task}} claimed"),
        (_by_task("zart_executions_resumed_total"), "{{task}} resumed"),
    ),
    series(
        "Parked and put off",
        "Executions put down until a time or a signal, and claims handed back to run again later, as workers do that "
        "drain. Much put off without restarts: workers claim more than they can run.",
        RATE,
        (_by_task("zart_executions_parked_total"), "{{task}} parked"),
        (_by_task("zart_executions_put_off_total"), "{{task}} put off"),
    ),
    series(
        "Execution retries",
        "Executions that failed and begin anew, as `max_retries` allows. A rise is trouble that has not yet become a "
        "failure: look at the errors with `zart history ID`.",
        RATE,
        (_by_task("zart_executions_retried_total"), "{{task}}"),
    ),
)

_STEP_PANELS = (
    series(
        "Steps by task and outcome",
        "Steps that ended each second: their result or failure is kept. `failed` after all retries; a body may go on "
        "from it.",
        RATE,
        (f"sum by (task, outcome) ({rate('zart_steps_ended_total', TASKS)})", "{{task}} {{outcome}}"),
    ),
    series(
        "Step duration",
        "One attempt of a step. A rise is what the step calls becoming slow; slots fill up, then work waits.",
        SECONDS,
        *_durations("zart_step_duration_seconds"),
    ),
    series(
        "Step retries",
        "Attempts that failed and are followed by another. Each is an error that nobody has seen yet: something that "
        "the steps call is unwell.",
        RATE,
        (_by_task("zart_step_retries_total"), "{{task}}"),
    ),
    series(
        "Replayed steps",
        "Steps answered from the journal, as a body is resumed. Many times the steps that ended: long bodies that "
        "wait often; let their waits be together, or split them into children.",
        RATE,
        (_by_task("zart_steps_replayed_total"), "{{task}}"),
    ),
    Panel(
        "table",
        "Tasks",
        "Each task in the last hour. At most 64 names per runner are told apart, the rest is 'other'.",
        COUNT,
        (
            *(
                Query(f'sum by (task) (increase(zart_executions_ended_total{{{TASKS}, outcome="{how}"}}[1h]))', how)
                for how in ("completed", "failed")
            ),
            Query(f"sum by (task) (increase(zart_step_retries_total{{{TASKS}}}[1h]))", "step retries"),
            Query(quantile(0.5, "zart_execution_duration_seconds", TASKS, "task"), "duration p50", SECONDS),
            Query(quantile(0.99, "zart_execution_duration_seconds", TASKS, "task"), "duration p99", SECONDS),
        ),
        width=16,
        keys=("task",),
    ),
)

DASHBOARD = Dashboard(
    "zart-executions",
    "zart: executions",
    "What waits, what ends and how, and how long it takes.",
    (JOB, INSTANCE, QUEUE, TASK),
    (
        Row("Is it healthy, is it keeping up, what waits", _FIRST),
        Row("Queues", _QUEUE_PANELS),
        Row("Executions", _ENDING_PANELS),
        Row("Steps", _STEP_PANELS),
    ),
)
