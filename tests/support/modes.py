"""Ways to run a worker in which workflows must come to the same results.

as is          nothing is done to it
evicting       no grace, and a body is put off after every checkpoint: all it does, it does on a fresh pass
alternating    evicting, and no worker takes up an execution that it ran last: two take turns
"""

from __future__ import annotations

import asyncio
import enum
import random
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
    """Puts a body off after each of its checkpoints."""

    @property
    def grace(self) -> float:
        return 0.0

    @property
    def rows(self) -> Ticker:
        return self._rows

    @rows.setter
    def rows(self, ticker: Ticker) -> None:
        self._rows = ticker
        store = ticker.checkpoint

        def store_and_evict(turn: Turn, *columns: Any) -> asyncio.Future[Any]:
            stored = store(turn, *columns)
            stored.add_done_callback(lambda _: turn.hand_back())
            return stored

        ticker.checkpoint = store_and_evict  # type: ignore[method-assign, assignment]


_last_run_by: dict[int, EvictingLoop] = {}


class AlternatingLoop(EvictingLoop):
    """Puts off what it ran last, until another worker has run it."""

    def _hold(self, turn: Turn) -> None:
        if _last_run_by.get(turn.id) is not self:
            _last_run_by[turn.id] = self
            super()._hold(turn)
        else:
            turn.close()
            self.turns[turn.id] = turn
            self.rows.end(turn, Verb.PUT_OFF, due=random.random() * 0.02)  # not in step with the other one


_LOOPS = {Mode.AS_IS: WorkerLoop, Mode.EVICTING: EvictingLoop, Mode.ALTERNATING: AlternatingLoop}
