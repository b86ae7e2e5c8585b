"""Five steps in a row, each durable before the next begins."""

from __future__ import annotations

from functools import partial

from bench import workflows
from bench.scenario import Scenario, Step

_NAMES = ("check-stock", "reserve-items", "charge-card", "book-courier", "send-receipt")

SCENARIO = Scenario(
    name="five-step",
    question="How fast are five-step executions drained, and what does each cost?",
    durable=workflows.five_step,
    steps=tuple(Step(name, partial(workflows.receipt, step=index)) for index, name in enumerate(_NAMES, 1)),
    output=partial(workflows.receipt, step=len(_NAMES)),
    executions=100_000,
)
