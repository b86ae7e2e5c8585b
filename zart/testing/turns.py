"""One turn of a run under test: the engine's own, with a journal in memory where a worker has its database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from zart.config import DEFAULT_MAX_RESULT_BYTES
from zart.engine.batch import VerbRow
from zart.engine.children import Child
from zart.engine.life import ABANDON_AFTER, TurnLife
from zart.engine.replay import Checkpoint, History
from zart.engine.spec import DurableSpec
from zart.engine.turn import Turn
from zart.metrics import Place
from zart.model import Kind, Verb
from zart.testing.crashes import Moment
from zart.testing.journal import Row
from zart.testing.watched import WatchedTurn

if TYPE_CHECKING:
    from zart.testing.execution import Execution

# How often a body that does something besides waiting is asked whether it still does.
BEAT = 0.005
# Of children that are made together, in what is told of a crash.
_MOST_NAMES = 3
_FOR_EVER = (2**63,)


class Pass:
    """Host of one turn, and sink of its rows. They are stored in the order of the turn, all or none of one moment.

    Attributes:
        crashed: the worker died in it.
        ending: how it ended, None when nothing was stored of that.
    """

    grace = 0.0
    max_result_bytes = DEFAULT_MAX_RESULT_BYTES
    transactions = None

    def __init__(self, execution: Execution, epoch: int) -> None:
        self.place = Place.private()
        self.attribution = self.place.attribution()
        self.crashed = self._dropped = False
        self.ending: VerbRow | None = None
        self._execution, self._world, self._journal = execution, execution.world, execution.journal
        self._waiting: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self.turn = WatchedTurn(self, execution.number, execution.run, epoch, self._journal.wakes)
        self.turn.history = self._history(epoch)

    async def run(self) -> None:
        """Run the body until the turn has ended, or the worker has died."""
        turn, execution = self.turn, self._execution
        try:
            turn.begin(
                execution.spec,
                execution.id,
                execution.data(),
                execution.attempt,
                execution.deadline_in(),
                self._loop,
                parent=execution.told_parent(),
            )
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
        if epoch == 1 and not self._journal.wakes:
            return None
        return self._journal.history(epoch, self._loop.time(), self._execution.unfinished())

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
        name = self._execution.name_of_step(self.turn.prefix + name)
        starts, path = self._world.starts, self._execution.prefix + name
        starts.count[path] += 1
        if self._execution.has_kept(name):
            starts.again.append(path)

    def served(self, task_name: str) -> DurableSpec | None:
        """What is registered under this name, if there is a registry."""
        return None if self._world.served is None else self._world.served.get(task_name)

    # -- Host

    @property
    def rows(self) -> Pass:
        return self

    async def database_time(self) -> datetime:
        """Host.database_time."""
        clock = self._journal.clock
        return clock.at(clock.now)

    @property
    def sure_until(self) -> Sequence[int]:
        """Host.sure_until: nobody else is there."""
        return _FOR_EVER

    async def make_sure(self, turn: Turn) -> None:
        """Host.make_sure."""

    def serves(self, task_name: str) -> bool:
        """Host.serves."""
        return self._world.served is None or task_name in self._world.served

    def make_children(self, turn: Turn, children: Sequence[tuple[Child, bytes]]) -> asyncio.Future[Any]:
        """Host.make_children."""
        made: asyncio.Future[Any] = self._loop.create_future()

        def keep() -> None:
            for child, data in children:
                self._execution.make(child, self.turn.works[child.key], data)
            self._loop.call_soon(self._tell, made, None)

        names = [repr(self._execution.prefix + child.spec.name) for child, _ in children]
        more = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
        self._add(keep, Verb.HOLD, " and ".join(names[:_MOST_NAMES] + more))
        return made

    def look_for_events(self) -> None:
        """Host.look_for_events."""
        self._loop.call_soon(self._hear)

    # -- RowSink

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

        path = self._execution.prefix + name
        self._add(keep, Kind(kind), path, attempts if kind == Kind.ATTEMPT else None)
        return stored

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
        """RowSink.end."""

        def keep() -> None:
            self.ending = VerbRow(turn, turn.id, turn.epoch, verb, seen, done_at, due, status, output, error)

        path = self._execution.path
        self._add(keep, Kind.CHILD if path and verb == Verb.FINISH else verb, path)

    def _add(self, keep: Callable[[], None], what: Kind | Verb, name: str, attempt: int | None = None) -> None:
        def write() -> None:
            moment = self._world.plan.note(what, name, attempt)
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

    def _tell(self, stored: asyncio.Future[Any], found: Checkpoint | None) -> None:
        if not self._dropped and not stored.done():
            stored.set_result(found)
