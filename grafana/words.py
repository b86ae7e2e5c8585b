"""What all dashboards say alike: their choices, the labels these select, and the figures of the first row."""

from __future__ import annotations

from grafana.model import BAD_ABOVE_ZERO, COUNT, SECONDS, Panel, Variable, stat

FLEET = 'job=~"$job", instance=~"$instance"'
TASKS = f'{FLEET}, task=~"$task"'
OF_JOB = 'job=~"$job"'
QUEUES = f'{OF_JOB}, queue=~"$queue"'
"""One runner of the cluster measures the queues, and which one may change: so not of an instance."""

JOB = Variable("job", "Job", "label_values(zart_build_info, job)")
INSTANCE = Variable("instance", "Runner", 'label_values(zart_build_info{job=~"$job"}, instance)')
TASK = Variable("task", "Task", 'label_values(zart_executions_claimed_total{job=~"$job"}, task)')
QUEUE = Variable("queue", "Queue", 'label_values(zart_queue_executions{job=~"$job"}, queue)')

OLDEST = f"max(zart_queue_oldest_ready_seconds{{{QUEUES}}})"
ENDED = f"sum(rate(zart_executions_ended_total{{{OF_JOB}}}[$__rate_interval]))"


def in_state(states: str, *by: str) -> str:
    """How many executions are in one of these states, which a regular expression names."""
    inner = f'max by (queue, state) (zart_queue_executions{{{QUEUES}, state=~"{states}"}})'
    return f"sum by ({', '.join(by)}) ({inner})" if by else f"sum({inner})"


def oldest_ready() -> Panel:
    return stat(
        "Oldest work waiting",
        "How long the oldest execution that could run has waited for a worker. A few seconds are normal. When it "
        "rises steadily, the fleet does not keep up: add processes or runners, or find what holds the slots. One that "
        "nobody serves counts too: see 'Needs a person'.",
        SECONDS,
        OLDEST,
        ((None, "green"), (15, "yellow"), (60, "red")),
    )


def time_to_clear() -> Panel:
    return stat(
        "Backlog is done in",
        "Ready executions that somebody serves, divided by how many end each second: whether the fleet keeps up. 0 "
        "when nothing waits. Years mean that work is ready and nothing ends: look at the workers and at the database.",
        SECONDS,
        f"({in_state('ready')} - {in_state('unclaimable')}) / clamp_min({ENDED}, 1e-9)",
        ((None, "green"), (60, "yellow"), (600, "red")),
    )


def needs_a_person() -> Panel:
    return stat(
        "Needs a person",
        "Executions that go on only when somebody does something: quarantined (their process died each time they ran; "
        "mend the code, then `zart release`) and unclaimable (no live worker serves their task in their queue: deploy "
        "it).",
        COUNT,
        in_state("quarantined|unclaimable"),
        BAD_ABOVE_ZERO,
    )
