"""What all executions of one run under test share."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from zart.engine.spec import DurableSpec
from zart.errors import ZartError
from zart.testing.agenda import Agenda
from zart.testing.crashes import CrashPlan


class RunStuck(ZartError):
    """The run waits for what nobody will bring, or comes to no end."""


@dataclass(slots=True)
class Starts:
    """How often each step was begun, and the names of those that were though their result was kept."""

    count: Counter[str] = field(default_factory=Counter[str])
    again: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class World:
    """What all executions of a run share.

    Attributes:
        served: what can run as an execution of its own, by name; None is anything.
        crashes: how often a worker died.
    """

    agenda: Agenda
    served: Mapping[str, DurableSpec] | None
    plan: CrashPlan = field(default_factory=CrashPlan)
    starts: Starts = field(default_factory=Starts)
    crashes: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
