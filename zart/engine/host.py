"""What a turn needs of the worker that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from zart.codec import Attribution
from zart.metrics import Place
from zart.model import Verb

if TYPE_CHECKING:
    from zart.engine.children import Child
    from zart.engine.life import TurnLife
    from zart.engine.replay import Checkpoint
    from zart.engine.transactions import Transactions
    from zart.engine.turn import Turn


class RowSink(Protocol):
    """Where a turn's rows go: into the next tick."""

    def checkpoint(
        self,
        turn: TurnLife,
        key: int,
        kind: int,
        status: int,
        attempts: int,
        due: float | None,
        seconds: float,
        name: str,
        result: bytes | None,
        error: bytes | None,
    ) -> asyncio.Future[Checkpoint | None]:
        """Store a journal row."""
        ...

    def end(
        self,
        turn: TurnLife,
        verb: Verb,
        *,
        seen: int | None = None,
        done_at: int | None = None,
        due: float | None = None,
        status: int = 0,
        output: bytes | None = None,
        error: bytes | None = None,
    ) -> None:
        """End the turn."""
        ...


class Host(Protocol):
    """What a turn needs of the worker that runs it."""

    place: Place
    attribution: Attribution
    max_result_bytes: int

    @property
    def grace(self) -> float:
        """Seconds that a body may wait in memory before it is parked."""
        ...

    @property
    def sure_until(self) -> Sequence[int]:
        """Monotonic nanoseconds, by bucket, until when nobody can have taken the claims that are held there."""
        ...

    @property
    def rows(self) -> RowSink: ...

    @property
    def transactions(self) -> Transactions | None:
        """Where steps get theirs; None without a database."""
        ...

    async def database_time(self) -> datetime: ...

    async def make_sure(self, turn: Turn) -> None:
        """Return when it is sure that the claim is still held; a turn whose claim is gone is cancelled meanwhile."""
        ...

    def serves(self, task_name: str) -> bool:
        """Whether this task is registered here."""
        ...

    def make_children(self, turn: Turn, children: Sequence[tuple[Child, bytes]]) -> asyncio.Future[Any]:
        """Have these made, each with its input; done when they are."""
        ...

    def look_for_events(self) -> None:
        """A turn has `unread` events: read them soon, and tell it by `hear`."""
        ...
