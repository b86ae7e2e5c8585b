"""A scenario: which executions are run, and what they must leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.workflows import Order
from zart.durable import DurableExecution

_ID_PREFIX = "order-"


@dataclass(frozen=True, slots=True)
class Step:
    """A step that every execution of a scenario runs: its name, and its result for execution `number`."""

    name: str
    result: Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question asked of the engine.

    Args:
        name: how it is called on the command line.
        question: what its numbers answer.
        durable: the durable function that is run.
        steps: what the journal of each execution must hold, in order.
        output: the result of execution `number`.
        executions: how many are run unless told otherwise; enough for some seconds.
    """

    name: str
    question: str
    durable: DurableExecution[Order, Any]
    steps: tuple[Step, ...]
    output: Callable[[int], Any]
    executions: int


def execution_id(number: int) -> str:
    """The id of execution `number`."""
    return f"{_ID_PREFIX}{number}"


def number_of(execution_id: str) -> int:
    """The number of the execution with this id."""
    return int(execution_id.removeprefix(_ID_PREFIX))
