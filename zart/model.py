"""Frozen records and enums: the nouns of DESIGN, as the API shows them and as SQL stores them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ExecutionStatus(enum.StrEnum):
    """What an execution is doing, as the API shows it."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"

    @property
    def is_terminal(self) -> bool:
        return self not in (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.WAITING)


class StoredStatus(enum.IntEnum):
    """zart_executions.status. LIVE stands for pending, running and waiting, told apart by zart_queue."""

    LIVE = 0
    COMPLETED = 1
    FAILED = 2
    CANCELLED = 4
    QUARANTINED = 5


class Kind(enum.IntEnum):
    """zart_tasks.kind: what a journal row is. ATTEMPT never is one: such rows go to zart_attempts."""

    STEP = 1
    EVENT = 2
    CHILD = 3
    SLEEP = 4
    WAIT = 5
    GROUP = 6
    CAPTURE = 7
    FAILURE = 8
    ATTEMPT = 9


class Outcome(enum.IntEnum):
    """zart_tasks.status: how the operation of a journal row ended (a child's uses StoredStatus)."""

    COMPLETED = 1
    FAILED = 2
    DECLARED = 3
    CANCELLED = 4
    TIMED_OUT = 9


class KeySpace(enum.IntEnum):
    """Seed of the step key's hash: names in different spaces never collide."""

    STEP = 0
    EVENT = 1
    WAIT = 2
    GROUP = 3
    FAILURE = 4


class Verb(enum.IntEnum):
    """What a tick does with a held queue row. HANDLE: it has failed, and its failure handler is to run."""

    HOLD = 0
    FINISH = 1
    PARK = 2
    PUT_OFF = 3
    RETRY = 4
    HANDLE = 5


class EventAnswer(enum.StrEnum):
    """What became of an offered event."""

    ACCEPTED = "accepted"
    ALREADY_OFFERED = "already_offered"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """What `context()` tells: which execution this code runs for, and which try it is (0-based)."""

    execution_id: str
    task_name: str
    data: Any
    current_attempt: int
    max_retries: int

    def is_retry(self) -> bool:
        """True from the second try on."""
        return self.current_attempt > 0


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """One execution as the database has it. Times are UTC; `input`, `output`, `error` are plain JSON values."""

    execution_id: str
    task_name: str
    status: ExecutionStatus
    run: int
    queue: str
    priority: int
    input: Any
    output: Any
    error: Any
    attempt: int
    max_retries: int
    crashes: int
    deadline: datetime | None
    parent: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One failed try of a step. `due` is when the next one was to begin, None after the last."""

    attempt: int
    error: Any
    due: datetime | None
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One journal row. `attempts` counts all tries; `failed_attempts` lists those that failed before the last."""

    name: str
    kind: str
    status: str
    result: Any
    error: Any
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    due: datetime | None = None
    failed_attempts: tuple[AttemptRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StartedMany:
    """Answer of `start_many`: how many executions were made, and which ids existed before."""

    created: int
    existing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; pass `after` to get the next one, None at the end."""

    items: tuple[T, ...]
    after: str | None
