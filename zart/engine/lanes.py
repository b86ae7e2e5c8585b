"""Lanes, one per queue and task: those that a worker claims from, and those that it puts children into."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from zart import tracing
from zart.config import WorkerConfig
from zart.engine.batch import ChildRow, parts_of
from zart.engine.children import Child
from zart.engine.session import Session
from zart.engine.spec import DurableSpec
from zart.engine.ticker import CLAIM_TIMEOUT, Ticker
from zart.engine.turn import Turn
from zart.store import queue

Children = Sequence[tuple[Child, bytes]]


class Lanes:
    """The lanes that one worker knows.

    Args:
        session, rows: its connection, and what goes with its next ticks.
        registry: durable functions by task name.

    Attributes:
        claimed: those it claims from, in the order to try them.
        served: queue and task of each lane that was ever claimed from.
    """

    def __init__(
        self, session: Session, rows: Ticker, registry: Mapping[str, DurableSpec], config: WorkerConfig
    ) -> None:
        self._session, self._rows, self._registry, self._config = session, rows, registry, config
        self._loop = asyncio.get_running_loop()
        self.claimed: list[int] = []
        self.served: dict[int, tuple[str, str]] = {}
        self._of_children: dict[tuple[str, str], int] = {}
        self._unplaced: list[tuple[Turn, Children, asyncio.Future[Any]]] = []
        self._read_at = float("-inf")

    async def refresh(self) -> None:
        """Rotate the lanes; once per poll interval look for those that starts in queues unused before have made."""
        if self._loop.time() - self._read_at < self._config.poll_seconds:
            self.claimed = self.claimed[1:] + self.claimed[:1]
            return
        session = self._session
        if not self.claimed:
            pairs = [(spec.queue, spec.task_name) for spec in self._registry.values()]
            await queue.add_lanes(session.connection, session.schema, pairs)
        # Often the first word after idleness, on a link that has died meanwhile.
        patience = self._rows.patience(CLAIM_TIMEOUT)
        served = await queue.lanes_served(
            session.connection, session.schema, session.task_names, self._config.queues, patience
        )
        self.claimed = list(served)
        self.served |= served
        self._read_at = self._loop.time()

    # -- children

    def has_unplaced(self) -> bool:
        """Whether there are children for `place` to find lanes for."""
        return bool(self._unplaced)

    def send(self, turn: Turn, children: Children) -> asyncio.Future[Any] | None:
        """Send children with the next tick; None when `place` has to find a lane for one of them before."""
        if any(_pair(turn, child) not in self._of_children for child, _ in children):
            return None
        context = None if turn.span is None else tracing.traceparent(turn.span)
        rows = [
            ChildRow(
                child.key,
                child.spec.name,
                child.spec.task_name,
                self._of_children[_pair(turn, child)],
                turn.priority if child.spec.priority is None else child.spec.priority,
                data,
                child.spec.max_retries,
                child.spec.timeout,
                context,
            )
            for child, data in children
        ]
        return asyncio.gather(*(self._rows.make_children(turn, part) for part in parts_of(rows)))

    def send_when_placed(self, turn: Turn, children: Children) -> asyncio.Future[Any]:
        """Have `place` send them."""
        made: asyncio.Future[Any] = self._loop.create_future()
        self._unplaced.append((turn, children, made))
        return made

    async def place(self) -> None:
        """Find the lanes of children whose queue and task were not seen here before, and send them."""
        session, unplaced = self._session, list(self._unplaced)  # others may come while the database is asked
        pairs = {_pair(turn, child) for turn, children, _ in unplaced for child, _ in children}
        self._of_children |= await queue.add_lanes(session.connection, session.schema, pairs)
        self._read_at = float("-inf")
        self._unplaced = self._unplaced[len(unplaced) :]
        for turn, children, made in unplaced:
            if not made.done() and not turn.ended and (sent := self.send(turn, children)) is not None:
                sent.add_done_callback(functools.partial(_pass_on, made))


def _pair(turn: Turn, child: Child) -> tuple[str, str]:
    """Queue and task that a child is claimed by."""
    return turn.queue if child.spec.queue is None else child.spec.queue, child.spec.task_name


def _pass_on(made: asyncio.Future[Any], sent: asyncio.Future[Any]) -> None:
    if not made.done() and not sent.cancelled():
        made.set_result(None)
