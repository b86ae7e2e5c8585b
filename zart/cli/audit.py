"""The demo's check: what the database has, held against what it must have."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime

from zart.cli.onboarding import expected_steps
from zart.model import StoredStatus
from zart.store.audit import AuditedExecution

_MOST_FAULTS = 3


@dataclass(slots=True)
class Audit:
    """What was found. `faults` holds the first few things that are wrong, as sentences."""

    executions: int
    completed: int = 0
    steps: int = 0
    right_steps: int = 0
    taken_over: int = 0
    began_at: datetime | None = None
    ended_at: datetime | None = None
    again_at: datetime | None = None
    seen: set[int] = field(default_factory=set[int])
    faults: list[str] = field(default_factory=list[str])

    @property
    def passed(self) -> bool:
        """Everything is there, exactly once, and nothing else."""
        return not self.faults and self.completed == self.executions == len(self.seen)

    def add(self, found: AuditedExecution) -> None:
        """Check one execution."""
        number = number_of(found.execution_id)
        if number in self.seen or not 0 <= number < self.executions:
            self._fault(f"{found.execution_id} should not be there")
            return
        self.seen.add(number)
        self._check_ending(found, number)
        self._check_steps(found, number)
        if found.epoch > 1:
            self.taken_over += 1
            self.again_at = min(filter(None, (self.again_at, found.again_at)), default=None)
        self.began_at = min(filter(None, (self.began_at, found.started_at)), default=None)
        self.ended_at = max(filter(None, (self.ended_at, found.finished_at)), default=None)

    def _check_ending(self, found: AuditedExecution, number: int) -> None:
        wanted = expected_steps(number)["provision-workspace"]
        if found.status is not StoredStatus.COMPLETED:
            self._fault(f"{found.execution_id} is {found.status.name.lower()}")
        elif found.output is None or json.loads(found.output) != wanted:
            self._fault(f"{found.execution_id} has the result {found.output}")
        else:
            self.completed += 1

    def _check_steps(self, found: AuditedExecution, number: int) -> None:
        wanted = expected_steps(number)
        names = sorted(name for name, _ in found.steps)
        if names != sorted(wanted):
            self._fault(f"{found.execution_id} has the steps {', '.join(names) or 'none'}")
        self.steps += len(found.steps)
        for name, result in found.steps:
            if name in wanted and result is not None and json.loads(result) == wanted[name]:
                self.right_steps += 1
            else:
                self._fault(f"step {name} of {found.execution_id} has the result {result}")

    def _fault(self, text: str) -> None:
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(text)


def execution_id_of(number: int) -> str:
    """The id of the demo's execution with this number."""
    return f"customer-{number:07}"


def number_of(execution_id: str) -> int:
    """The number in an id that `execution_id_of` made."""
    return int(execution_id.rpartition("-")[2])
