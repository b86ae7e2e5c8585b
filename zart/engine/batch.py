"""What one tick carries: checkpoints and endings as rows, turned into columns once, when the tick is sent.

A row is a tuple and the columns are one `zip` over them: measured, half the cost of appending to each column.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zart.config import MAX_TICK_BYTES, MAX_TICK_ROWS
from zart.model import Verb

if TYPE_CHECKING:
    from zart.engine.life import TurnLife
    from zart.engine.replay import Checkpoint

NEVER = 2**31 - 1


class CheckpointRow(NamedTuple):
    """One journal row to write. `stored` gets None when it was stored as it is, else what stands there instead."""

    turn: TurnLife
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


class ChildRow(NamedTuple):
    """A child to make under the execution of its verb row. `timeout` in seconds from the tick."""

    key: int
    name: str
    task_name: str
    lane: int
    priority: int
    input: bytes
    max_retries: int
    timeout: float | None
    traceparent: str | None = None  # None: the parent's


class VerbRow(NamedTuple):
    """What to do with one held execution. Its children are made by the same tick, or not at all.

    `stored`, if there is one, is resolved when a HOLD is applied. `busy`: how often its row was locked by others.
    """

    turn: TurnLife
    id: int
    epoch: int
    verb: int
    seen: int | None = None
    done_at: int | None = None
    due: float | None = None  # the loop's time: it may be sent late, and again
    status: int = 0
    output: bytes | None = None
    error: bytes | None = None
    children: tuple[ChildRow, ...] = ()
    stored: asyncio.Future[Checkpoint | None] | None = None
    busy: int = 0

    def size(self) -> int:
        """How many bytes of values it carries."""
        size = _bytes_of(self.output, self.error)
        return size + sum(len(child.input) for child in self.children) if self.children else size


_SENT = len(VerbRow._fields) - 3  # the last three have columns of their own, or none
_NO_CHECKPOINTS: tuple[tuple[()], ...] = ((),) * (len(CheckpointRow._fields) - 2)
_NO_VERBS: tuple[tuple[()], ...] = ((),) * (_SENT - 1)
_NO_CHILDREN: tuple[tuple[()], ...] = ((),) * (len(ChildRow._fields) + 2)


@dataclass(slots=True)
class Batch:
    """Rows of one bucket, waiting for a tick or in one."""

    bucket: int
    checkpoints: list[CheckpointRow] = field(default_factory=list[CheckpointRow])
    verbs: list[VerbRow] = field(default_factory=list[VerbRow])
    bytes: int = 0
    children: int = 0
    verbs_first: bool = False

    def __len__(self) -> int:
        return len(self.checkpoints) + len(self.verbs) + self.children

    def columns(self, now: float) -> tuple[Any, ...]:
        """The arrays of zart_tick between the worker's id and the claims; `now` is the loop's time."""
        checkpoints = tuple(zip(*self.checkpoints, strict=True))[2:] or _NO_CHECKPOINTS
        rows = [row if row.due is None else row._replace(due=max(0.0, row.due - now)) for row in self.verbs]
        verbs = tuple(zip(*rows, strict=True))[1:_SENT] or _NO_VERBS
        children: tuple[tuple[Any, ...], ...] = _NO_CHILDREN
        if self.children:
            made = [(row.id, row.turn.run, *child) for row in self.verbs for child in row.children]
            children = tuple(zip(*made, strict=True))
        return (*map(_column, checkpoints), *map(_column, verbs), *map(_column, children))

    def ending(self) -> int:
        """How many of its turns end, freeing their slots."""
        return sum(1 for row in self.verbs if row.verb != Verb.HOLD)

    def turns(self) -> list[TurnLife]:
        """The turns it has rows of, each once."""
        turns = [row.turn for row in self.checkpoints] + [row.turn for row in self.verbs]
        return list(dict.fromkeys(turns))

    def only(self, turns: Iterable[TurnLife]) -> Batch:
        """The rows of these turns."""
        wanted, part = set(turns), Batch(self.bucket)
        for row in self.checkpoints:
            if row.turn in wanted:
                part.add_checkpoint(row)
        for verb in self.verbs:
            if verb.turn in wanted:
                part.add_verb(verb)
        return part

    def split(self) -> Batch:
        """Take out what one tick may carry; the rest stays. A row over the byte limit goes alone.

        No verb goes before the checkpoints of its turn. Verbs that had to stay go first the next time: a large one
        would wait for as long as others fill the ticks.
        """
        if len(self) <= MAX_TICK_ROWS and self.bytes <= MAX_TICK_BYTES:
            taken = Batch(self.bucket, self.checkpoints, self.verbs, self.bytes, self.children)
            self.checkpoints, self.verbs, self.bytes, self.children = [], [], 0, 0
            self.verbs_first = False
            return taken
        taken, rest = Batch(self.bucket), Batch(self.bucket)
        verbs = taken._fill_with_verbs(self.verbs, self.checkpoints) if self.verbs_first else self.verbs
        for row in self.checkpoints:
            part = taken if taken.has_room_for(_bytes_of(row.result, row.error)) else rest
            part.add_checkpoint(row)
        for verb in taken._fill_with_verbs(verbs, rest.checkpoints):
            rest.add_verb(verb)
        self.checkpoints, self.verbs, self.bytes = rest.checkpoints, rest.verbs, rest.bytes
        self.children, self.verbs_first = rest.children, bool(rest.verbs) and not self.verbs_first
        return taken

    def _fill_with_verbs(self, verbs: Sequence[VerbRow], after: Sequence[CheckpointRow]) -> list[VerbRow]:
        """Add those for which there is room, and none of whose checkpoints is to go before; give back the others."""
        held_up, left = {row.turn for row in after}, list[VerbRow]()
        for verb in verbs:
            if verb.turn not in held_up and self.has_room_for(verb.size(), 1 + len(verb.children)):
                self.add_verb(verb)
            else:
                left.append(verb)
        return left

    def has_room_for(self, size: int, rows: int = 1) -> bool:
        return not len(self) or (len(self) + rows <= MAX_TICK_ROWS and self.bytes + size <= MAX_TICK_BYTES)

    def add_checkpoint(self, row: CheckpointRow) -> None:
        self.checkpoints.append(row)
        self.bytes += _bytes_of(row.result, row.error)

    def add_verb(self, row: VerbRow) -> None:
        self.verbs.append(row)
        self.bytes += row.size()
        self.children += len(row.children)


def parts_of(children: Sequence[ChildRow]) -> list[tuple[ChildRow, ...]]:
    """Children in parts that one tick can carry."""
    parts: list[list[ChildRow]] = [[]]
    size = 0
    for child in children:
        if len(parts[-1]) == MAX_TICK_ROWS // 2 or (parts[-1] and size + len(child.input) > MAX_TICK_BYTES):
            parts.append([])
            size = 0
        parts[-1].append(child)
        size += len(child.input)
    return [tuple(part) for part in parts]


def _column(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A column without any value goes as an empty array: `unnest` fills short columns up with nulls."""
    return () if not values or (values[0] is None and values.count(None) == len(values)) else values


def _bytes_of(first: bytes | None, second: bytes | None) -> int:
    return (len(first) if first is not None else 0) + (len(second) if second is not None else 0)
