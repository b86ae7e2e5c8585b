"""What one tick carries: checkpoints and endings as rows, turned into columns once, when the tick is sent.

A row is a tuple and the columns are one `zip` over them: measured, half the cost of appending to each column.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zart.config import MAX_TICK_BYTES, MAX_TICK_ROWS
from zart.model import Verb

if TYPE_CHECKING:
    from zart.engine.replay import Checkpoint
    from zart.engine.turn import Turn

NEVER = 2**31 - 1


class CheckpointRow(NamedTuple):
    """One journal row to write. `stored` gets None when it was stored as it is, else what stands there instead."""

    turn: Turn
    stored: asyncio.Future[Checkpoint | None]
    id: int
    epoch: int
    key: int
    kind: int
    status: int
    attempts: int
    due: float | None
    seconds: float
    name: str
    result: bytes | None
    error: bytes | None


class VerbRow(NamedTuple):
    """What to do with one held execution."""

    turn: Turn
    id: int
    epoch: int
    verb: int
    seen: int | None = None
    done_at: int | None = None
    due: float | None = None  # the loop's time: it may be sent late, and again
    status: int = 0
    output: bytes | None = None
    error: bytes | None = None


_NO_CHECKPOINTS: tuple[tuple[()], ...] = ((),) * (len(CheckpointRow._fields) - 2)
_NO_VERBS: tuple[tuple[()], ...] = ((),) * (len(VerbRow._fields) - 1)
_NO_CHILDREN: tuple[tuple[()], ...] = ((),) * 10


@dataclass(slots=True)
class Batch:
    """Rows of one bucket, waiting for a tick or in one."""

    bucket: int
    checkpoints: list[CheckpointRow] = field(default_factory=list[CheckpointRow])
    verbs: list[VerbRow] = field(default_factory=list[VerbRow])
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.checkpoints) + len(self.verbs)

    def columns(self, now: float) -> tuple[Any, ...]:
        """The arrays of zart_tick between the worker's id and the claims; `now` is the loop's time."""
        checkpoints = tuple(zip(*self.checkpoints, strict=True))[2:] or _NO_CHECKPOINTS
        rows = [row if row.due is None else row._replace(due=max(0.0, row.due - now)) for row in self.verbs]
        verbs = tuple(zip(*rows, strict=True))[1:] or _NO_VERBS
        return (*map(_column, checkpoints), *map(_column, verbs), *_NO_CHILDREN)

    def ending(self) -> int:
        """How many of its turns end, freeing their slots."""
        return sum(1 for row in self.verbs if row.verb != Verb.HOLD)

    def turns(self) -> list[Turn]:
        """The turns it has rows of, each once."""
        turns = [row.turn for row in self.checkpoints] + [row.turn for row in self.verbs]
        return list(dict.fromkeys(turns))

    def only(self, turns: Iterable[Turn]) -> Batch:
        """The rows of these turns."""
        wanted = set(turns)
        return Batch(
            self.bucket,
            [row for row in self.checkpoints if row.turn in wanted],
            [row for row in self.verbs if row.turn in wanted],
        )

    def split(self) -> Batch:
        """Take out what one tick may carry; the rest stays. A row over the byte limit goes alone."""
        if len(self) <= MAX_TICK_ROWS and self.bytes <= MAX_TICK_BYTES:
            taken = Batch(self.bucket, self.checkpoints, self.verbs, self.bytes)
            self.checkpoints, self.verbs, self.bytes = [], [], 0
            return taken
        taken, rest = Batch(self.bucket), Batch(self.bucket)
        for row in self.checkpoints:
            part = taken if taken.has_room_for(_bytes_of(row.result, row.error)) else rest
            part.add_checkpoint(row)
        for verb in self.verbs:
            part = taken if taken.has_room_for(_bytes_of(verb.output, verb.error)) else rest
            part.add_verb(verb)
        self.checkpoints, self.verbs, self.bytes = rest.checkpoints, rest.verbs, rest.bytes
        return taken

    def has_room_for(self, size: int) -> bool:
        return not len(self) or (len(self) < MAX_TICK_ROWS and self.bytes + size <= MAX_TICK_BYTES)

    def add_checkpoint(self, row: CheckpointRow) -> None:
        self.checkpoints.append(row)
        self.bytes += _bytes_of(row.result, row.error)

    def add_verb(self, row: VerbRow) -> None:
        self.verbs.append(row)
        self.bytes += _bytes_of(row.output, row.error)


def _column(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A column without any value goes as an empty array: `unnest` fills short columns up with nulls."""
    return () if not values or (values[0] is None and values.count(None) == len(values)) else values


def _bytes_of(first: bytes | None, second: bytes | None) -> int:
    return (len(first) if first is not None else 0) + (len(second) if second is not None else 0)
