"""Freeing what a worker held that is gone: never waits, and goes on until nothing names the worker any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from zart.log import fields, logger
from zart.postgres.connection import Connection
from zart.store import workers

EVICT_AFTER: Final = 2.0
"""A worker whose last tick has been open for so long does not read its answer; its session is ended."""
_FIRST_PAUSE: Final = 0.02
_MAX_PAUSE: Final = 1.0

_log = logger("takeover")


@dataclass(slots=True, eq=False)
class Takeover:
    """One worker in one bucket, on its way out.

    Args:
        proof: the worker's process is known to be dead; else its lease must have run out.
        blame: executions whose code ran when it died; None when that is not known.
        how: how its process ended, as `signal SIGSEGV`.
        step: the step begun last by an execution that it ran alone, or "".
        after: the takeover of the worker's former id, which comes first: only it can tell whether a change of identity
            that was under way has brought claims to this one.

    Attributes:
        entered: the worker is marked dead, and can write nothing more.
        done: nothing names the worker any more.
        due: monotonic time of the next try.
        freed: how many claims were freed so far.
        finished: set when done.
    """

    bucket: int
    worker_id: int
    proof: bool
    blame: Sequence[int] | None
    how: str = ""
    step: str = ""
    after: Takeover | None = None
    entered: bool = field(default=False, init=False)
    done: bool = field(default=False, init=False)
    due: float = field(default=0.0, init=False)
    freed: int = field(default=0, init=False)
    finished: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _pause: float = field(default=_FIRST_PAUSE, init=False)
    _busy_since: float | None = field(default=None, init=False)

    def is_due(self, now: float) -> bool:
        """It may be tried now."""
        return not self.done and now >= self.due and (self.after is None or self.after.entered)

    async def advance(self, connection: Connection, schema: str, now: float) -> int:
        """Try once; give how many claims were freed. Until `done`, it is to be tried again from `due` on."""
        answer = await workers.take_over_worker(
            connection, schema, self.bucket, self.worker_id, proof=self.proof, blame=self.blame, death=self._death()
        )
        self.done = answer.gone
        if not answer.busy:
            self.entered, self._busy_since = True, None
        elif self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since >= EVICT_AFTER:
            await self._end_stalemate(connection, schema)
            self._busy_since = now
        if self.done:
            self.finished.set()
        self.due = now + self._pause
        self._pause = min(self._pause * 2, _MAX_PAUSE)
        freed = len(answer.freed)
        self.freed += freed
        if freed:
            about = fields(worker_id=self.worker_id, freed=freed, how=self.how or None)
            _log.info("took over %d execution%s of worker %d", freed, "s"[: freed > 1], self.worker_id, extra=about)
        for execution_id in answer.apart:
            _log.warning(
                "execution %r is set apart: its code ran when its process died (%s)",
                execution_id,
                self.how,
                extra=fields(
                    execution=execution_id, worker_id=self.worker_id, how=self.how or None, step=self.step or None
                ),
            )
        return freed

    def _death(self) -> str:
        """What those that are set apart have as their error while they are."""
        death = {"kind": "process_died", "type": "ProcessDied", "message": f"its process died: {self.how or 'unknown'}"}
        return json.dumps({**death, "how": self.how, "step": self.step or None})

    async def _end_stalemate(self, connection: Connection, schema: str) -> None:
        """The worker row stays locked. A lease that lives again ends the takeover, else the worker's session ends."""
        if not self.proof:
            expired = await workers.expired_workers(connection, schema, [self.bucket])
            if self.worker_id not in {worker.id for worker in expired}:
                self.done = True
                return
        _log.warning(
            "the session of worker %d is ended: its last tick stays open",
            self.worker_id,
            extra={"worker_id": self.worker_id},
        )
        await workers.evict_backend(connection, schema, self.bucket, self.worker_id)
