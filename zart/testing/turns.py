"""One turn of a run under test: the engine's own, with a journal in memory where a worker has its database."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from zart.codec import step_key
from zart.config import DEFAULT_MAX_RESULT_BYTES
from zart.engine.batch import VerbRow
from zart.engine.replay import Checkpoint, History
from zart.engine.spec import DurableSpec, StepInvocation, StepSpec
from zart.engine.turn import ABANDON_AFTER, Turn
from zart.metrics import Place
from zart.model import KeySpace, Kind, Verb
from zart.testing.crashes import CrashPlan, Moment
from zart.testing.journal import Journal, Row

# How often a body that does something besides waiting is asked whether it still does.
BEAT = 0.005


@dataclass(slots=True)
class Starts:
    """How often each step was begun, and the names of those that were though their result was kept."""

    count: Counter[str] = field(default_factory=Counter[str])
    again: list[str] = field(default_factory=list[str])


class Pass:
    """Host of one turn, and sink of its rows. They are stored in the order of the turn, all or none of one moment.

    Attributes:
        crashed: the worker died in it.
        ending: how it ended, None when nothing was stored of that.
    """

    grace = 0.0
    max_result_bytes = DEFAULT_MAX_RESULT_BYTES

    def __init__(self, journal: Journal, plan: CrashPlan, starts: Starts, epoch: int) -> None:
        self.place = Place.private()
        self.attribution = self.place.attribution()
        self.crashed = self._dropped = False
        self.ending: VerbRow | None = None
        self._journal, self._plan, self._starts = journal, plan, starts
        self._waiting: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self.turn = _WatchedTurn(self, epoch, journal.wakes)
        self.turn.history = self._history(epoch)

    async def run(
        self, spec: DurableSpec, execution_id: str, data: Any, attempt: int, deadline_in: float | None
    ) -> None:
        """Run the body until the turn has ended, or the worker has died."""
        turn = self.turn
        try:
            turn.begin(spec, execution_id, data, attempt, deadline_in, self._loop)
            give_up = None
            while turn.main is not None and not turn.main.done():
                now = self._loop.time()
                if turn.ended and give_up is None:
                    give_up = now + ABANDON_AFTER
                if give_up is not None and now > give_up:
                    break
                await asyncio.wait({turn.main}, timeout=BEAT)
                turn.rest(self._loop.time())
        except BaseException:
            self.drop()
            raise
        self._store()

    def _history(self, epoch: int) -> History | None:
        """What the turn is to know; None, as in a worker, when there can be nothing yet."""
        return self._journal.history(epoch, self._loop.time()) if epoch > 1 or self._journal.wakes else None

    def drop(self) -> None:
        """The claim is gone: nothing of this turn is stored any more."""
        self._dropped = True
        self.turn.lose()

    def hear_soon(self) -> None:
        """An event has come. May be called by any thread."""
        self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        turn = self.turn
        if turn.events and not turn.ended:
            looked_for = list(turn.events)
            turn.hear(self._journal.wakes, self._journal.checkpoints(looked_for), looked_for)

    def note_start(self, name: str) -> None:
        """A try of a step begins."""
        self._starts.count[name] += 1
        if self._journal.has(step_key(KeySpace.STEP, name)):
            self._starts.again.append(name)

    # -- Host

    @property
    def rows(self) -> Pass:
        return self

    async def database_time(self) -> datetime:
        """Host.database_time."""
        clock = self._journal.clock
        return clock.at(clock.now)

    def look_for_events(self) -> None:
        """Host.look_for_events."""
        self._loop.call_soon(self._hear)

    # -- RowSink

    def checkpoint(
        self,
        turn: Turn,
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
        """RowSink.checkpoint."""
        stored: asyncio.Future[Checkpoint | None] = self._loop.create_future()
        now = self._journal.clock.now

        def keep() -> None:
            row = Row(
                key,
                kind,
                status,
                attempts,
                name,
                None if result is None else result.decode(),
                None if error is None else error.decode(),
                None if due is None else now + max(0.0, due),
                seconds,
                now,
                turn.epoch,
            )
            found = self._journal.keep(row)
            self._loop.call_soon(self._tell, stored, found)

        self._add(keep, Kind(kind), name, attempts if kind == Kind.ATTEMPT else None)
        return stored

    def end(
        self,
        turn: Turn,
        verb: Verb,
        *,
        seen: int | None = None,
        done_at: int | None = None,
        due: float | None = None,
        status: int = 0,
        output: bytes | None = None,
        error: bytes | None = None,
    ) -> None:
        """RowSink.end."""

        def keep() -> None:
            self.ending = VerbRow(turn, turn.id, turn.epoch, verb, seen, done_at, due, status, output, error)

        self._add(keep, verb)

    def _add(self, keep: Callable[[], None], what: Kind | Verb, name: str = "", attempt: int | None = None) -> None:
        def write() -> None:
            moment = self._plan.note(what, name, attempt)
            if moment is not Moment.BEFORE:
                keep()
            if moment is not None:
                self.crashed = True
                self.drop()

        if not self._waiting:
            self._loop.call_soon(self._store)
        self._waiting.append(write)

    def _store(self) -> None:
        writes, self._waiting = self._waiting, []
        for write in writes:
            if self._dropped:
                break
            write()

    def _tell(self, stored: asyncio.Future[Checkpoint | None], found: Checkpoint | None) -> None:
        if not self._dropped and not stored.done():
            stored.set_result(found)


class _WatchedTurn(Turn):
    """Tells of every start of a step."""

    __slots__ = ("_pass",)

    def __init__(self, host: Pass, epoch: int, seen: int) -> None:
        super().__init__(host, 1, 1, epoch, 0, seen)
        self._pass = host

    async def run_step(self, call: StepInvocation) -> Any:
        return await super().run_step(_WatchedCall(call, self._pass))


@dataclass(frozen=True, slots=True)
class _WatchedCall:
    call: StepInvocation
    host: Pass

    @property
    def spec(self) -> StepSpec:
        return self.call.spec

    def resolved_name(self) -> str:
        return self.call.resolved_name()

    def invoke(self) -> Awaitable[Any]:
        self.host.note_start(self.resolved_name())
        return self.call.invoke()
