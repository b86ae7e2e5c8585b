"""Figures of the queues as a whole, and which process of the cluster takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zart.postgres.connection import Connection
from zart.store.statements import statement

SAMPLE = "sample"
"""The duty of taking the figures of the queues."""

COUNTED: Final = 10_000
"""How many executions of a state are counted in all buckets before tasks are cut short."""
_LEAST_COUNTED: Final = 1_000


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How many executions of a queue are in which state.

    `ready` ones may be claimed; those of them whose task no live worker of the queue serves are `unclaimable` too.
    `waiting` ones wait for a time or a signal. `running` ones are held by a live worker, `expired` ones by one whose
    lease has run out. `oldest_ready`: seconds for which the oldest ready one could have run, 0 without one.

    Counts are exact up to 10,000 executions of a state in all queues. Past that, further tasks and priorities are
    counted up to 500 each.
    """

    ready: int = 0
    running: int = 0
    waiting: int = 0
    expired: int = 0
    quarantined: int = 0
    unclaimable: int = 0
    oldest_ready: float = 0.0

    def __add__(self, other: QueueFigures) -> QueueFigures:
        """The figures of both."""
        return QueueFigures(
            self.ready + other.ready,
            self.running + other.running,
            self.waiting + other.waiting,
            self.expired + other.expired,
            self.quarantined + other.quarantined,
            self.unclaimable + other.unclaimable,
            max(self.oldest_ready, other.oldest_ready),
        )


@dataclass(frozen=True, slots=True)
class Duty:
    """Whether the duty was got or kept, and the schema's version, for `check_version`."""

    held: bool
    version: int
    serves_from: int


async def sample_queues(connection: Connection, schema: str, buckets: Sequence[int]) -> dict[str, QueueFigures]:
    """The figures of every queue that was ever used, the oldest queue first; one statement for each bucket."""
    most = max(COUNTED // len(buckets), _LEAST_COUNTED)
    found: dict[str, QueueFigures] = {}
    for bucket in buckets:
        for row in await connection.fetch(statement("sample_queues", schema), bucket, most):
            name, *figures = row
            found[name] = found.get(name, QueueFigures()) + QueueFigures(*figures)
    return found


async def hold_duty(connection: Connection, schema: str, duty: str, holder: int, seconds: float) -> Duty:
    """Take a duty, or keep it, for some seconds by the database's clock, unless somebody else has it."""
    row = await connection.fetchrow(statement("hold_duty", schema), duty, holder, seconds)
    assert row is not None
    return Duty(*row)


async def drop_duty(connection: Connection, schema: str, duty: str, holder: int) -> None:
    """Let somebody else have the duty at once; nothing happens unless `holder` has it."""
    await connection.execute(statement("drop_duty", schema), duty, holder)
