"""Ways to run a worker in which workflows must come to the same results.

as is          nothing is done to it
evicting       no grace, and a body is put off after every checkpoint, and when its children are made: all it does, it
               does on a fresh pass
alternating    evicting, and no worker takes up an execution that it ran last: two take turns. Which of them begins is
               decided by the execution's number, so that children are begun here and there
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable
from typing import Any

from zart.engine.loop import WorkerLoop
from zart.engine.ticker import Ticker
from zart.engine.turn import Turn
from zart.model import Verb


class Mode(enum.StrEnum):
    AS_IS = "as is"
    EVICTING = "evicting"
    ALTERNATING = "alternating"

    @property
    def loop_class(self) -> type[WorkerLoop]:
        return _LOOPS[self]

    @property
    def workers(self) -> int:
        return 2 if self is Mode.ALTERNATING else 1


class EvictingLoop(WorkerLoop):
    """Puts a body off after each of its checkpoints, and each time that children of it are made."""

    @property
    def grace(self) -> float:
        return 0.0

    @property
    def rows(self) -> Ticker:
        return self._rows

    @rows.setter
    def rows(self, ticker: Ticker) -> None:
        self._rows = ticker
        ticker.checkpoint = self._evicting(ticker.checkpoint)  # type: ignore[method-assign]
        ticker.make_children = self._evicting(ticker.make_children)  # type: ignore[method-assign]

    def _evicting(self, store: Callable[..., asyncio.Future[Any]]) -> Callable[..., asyncio.Future[Any]]:
        def store_and_evict(turn: Turn, *columns: Any) -> asyncio.Future[Any]:
            def put_off(_: object) -> None:
                turn.hand_back()
                self._loop.call_soon(turn.put_down)  # children: only then the turn knows that they are made

            stored = store(turn, *columns)
            stored.add_done_callback(put_off)
            return stored

        return store_and_evict


_last_run_by: dict[int, EvictingLoop] = {}
_running: list[EvictingLoop] = []


class AlternatingLoop(EvictingLoop):
    """Puts off what it ran last, until another worker has run it."""

    async def run(self) -> None:
        _running.append(self)
        try:
            await super().run()
        finally:
            _running.remove(self)

    def _may_run(self, turn: Turn) -> bool:
        if turn.epoch == 1:
            return _running[turn.id % len(_running)] is self
        return _last_run_by.get(turn.id) is not self

    def _hold(self, turn: Turn) -> None:
        may_run = self._may_run(turn)
        _last_run_by[turn.id] = self
        if may_run:
            super()._hold(turn)
        else:
            turn.close()
            self.turns[turn.id] = turn
            self.rows.end(turn, Verb.PUT_OFF, due=random.random() * 0.02)  # not in step with the other one


_LOOPS = {Mode.AS_IS: WorkerLoop, Mode.EVICTING: EvictingLoop, Mode.ALTERNATING: AlternatingLoop}
