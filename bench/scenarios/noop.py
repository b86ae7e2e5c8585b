"""An empty body: what an execution costs before it does anything."""

from __future__ import annotations

from bench import workflows
from bench.scenario import Scenario


def _nothing(number: int) -> None:
    return None


SCENARIO = Scenario(
    name="noop",
    question="How fast are executions drained that do nothing, as in a plain job queue?",
    durable=workflows.noop,
    steps=(),
    output=_nothing,
    executions=200_000,
)
