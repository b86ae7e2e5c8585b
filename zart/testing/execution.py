"""One execution of a run under test: the run's own, or a child of another. Does what the tick does with its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from zart.codec import step_key
from zart.engine.batch import NEVER, VerbRow
from zart.engine.children import Child
from zart.engine.handler import FAILURE_KEY, FAILURE_NAME
from zart.engine.spec import DurableSpec, WorkItem
from zart.errors import InvalidArgument
from zart.model import EventAnswer, ExecutionInfo, KeySpace, Kind, Outcome, StoredStatus, Verb
from zart.names import FAILURE_PREFIX
from zart.terms import CHILD_PREFIX
from zart.testing.agenda import Entry
from zart.testing.journal import Journal, Row
from zart.testing.turns import Pass
from zart.testing.world import RunStuck, World
from zart.waiting import Ending

MAX_PASSES = 10_000
MAX_DEPTH = 50
# A parked turn says when it wants to go on as of its end, a moment after the time that it means: it is looked up.
_LATE = 0.001


class Execution:
    """An execution and its queue row.

    Attributes:
        path: its name in its parent's names, which go before it: "order/pay". Empty for the run's own.
        prefix: what goes before the names of its own operations.
        ending: None while it has not ended.
        current: the pass under way, if one is.
        passes: how often its body was begun.
        children: by key, those that have ended too.
    """

    def __init__(
        self,
        world: World,
        spec: DurableSpec,
        execution_id: str,
        data: str,
        *,
        timeout: float | None,
        parent: Execution | None = None,
        made_as: Child | None = None,
        run: int = 1,
    ) -> None:
        self.world, self.spec, self.id, self.run = world, spec, execution_id, run
        self.number = next(world.numbers)
        self.parent, self.made_as = parent, made_as
        self.journal = Journal(world.agenda.clock)
        self.children: dict[int, Execution] = {}
        self.path = self.prefix = ""
        self.depth = 0
        self.deadline = math.inf if timeout is None else self._now + timeout
        if parent is not None and made_as is not None:
            self.depth = parent.depth + 1
            self.path = parent.prefix + made_as.spec.name
            self.prefix = parent.prefix if spec.is_step else f"{self.path}/"
            self.deadline = min(parent.deadline, self.deadline)
        self.attempt = self.passes = 0
        self.current: Pass | None = None
        self.ending: Ending | None = None
        self._input, self._began_at = data, self._now
        self._is_parked, self._done_at = False, NEVER
        self._entry: Entry | None = None
        self._wake(self._now)

    @property
    def _now(self) -> float:
        return self.world.agenda.clock.now

    # -- its turns

    def _wake(self, at: float) -> None:
        """Let its next turn begin then, and at no other time."""
        if self._entry is not None:
            self._entry.withdraw()
        self._entry = None if at == math.inf else self.world.agenda.add(at, self.run_pass, is_turn=True)

    def _check_limits(self) -> None:
        if self.passes >= MAX_PASSES:
            raise RunStuck(f"execution {self.id!r} has not ended after {MAX_PASSES:,} passes of its body")
        if self.depth > MAX_DEPTH:
            raise RunStuck(
                f"child execution {self.id!r} is the child of a child, and so on, more than {MAX_DEPTH} deep"
            )

    async def run_pass(self) -> None:
        """Run one turn of it.

        Raises:
            RunStuck: there are too many of them.
        """
        world = self.world
        self._wake(self._now)
        self._check_limits()
        self._wake(math.inf)
        if self.parent is not None and self.made_as is not None and self.parent.journal.has(self.made_as.key):
            world.starts.again.append(self.path)
        if self.passes == 0:
            self._began_at = self._now
        self.passes += 1
        self._is_parked = False
        self.current = current = Pass(self, self.passes)
        try:
            await current.run()
        finally:
            self.current = None
            world.crashes += current.crashed
            if self.ending is None:
                if current.ending is None:
                    self._wake(self._now)
                else:
                    self._take(current.ending)

    def _take(self, row: VerbRow) -> None:
        """What the tick does with the queue row."""
        due = self._now + (row.due or 0.0)
        if row.verb == Verb.FINISH:
            self._stop(StoredStatus(row.status), row.output, row.error)
            if self.parent is not None:
                self.parent.hear_of(self)
        elif row.verb == Verb.PARK:
            done_at = NEVER if row.done_at is None else row.done_at
            may_go_on = row.seen != self.journal.wakes or self.journal.done >= done_at
            self._wake(self._now if may_go_on else self._due_at(due))
            self._is_parked, self._done_at = True, done_at
        else:
            self._wake(due)
        if row.verb == Verb.RETRY:
            self.attempt += 1
            self.journal.begin_retry()
        elif row.verb == Verb.HANDLE:
            self._begin_handling(row)

    def _begin_handling(self, row: VerbRow) -> None:
        """Its body has failed, and the failure handler follows. The deadline and the body's children are over."""
        error = None if row.error is None else row.error.decode()
        now = self._now
        self.journal.keep(
            Row(FAILURE_KEY, Kind.FAILURE, Outcome.FAILED, 1, FAILURE_NAME, None, error, None, 0.0, now, row.epoch)
        )
        self.deadline = math.inf
        for child in self.children.values():
            child._stop(StoredStatus.CANCELLED)

    def _due_at(self, about: float) -> float:
        """The stored moment that a parked turn waits for."""
        known = (*self.journal.dues(), self.deadline)
        return min((due for due in known if due > self._now and due >= about - _LATE), default=about)

    def _stop(self, status: StoredStatus, output: bytes | None = None, error: bytes | None = None) -> None:
        """It has ended, and its children with it: a body that returns has waited for all that its last pass wanted."""
        if self.ending is not None:
            return
        texts = (None if text is None else text.decode() for text in (output, error))
        self.ending = Ending(self.id, self.spec.task_name, status, *texts)
        self._wake(math.inf)
        if self.current is not None:
            self.current.drop()
        for child in self.children.values():
            child._stop(StoredStatus.CANCELLED)

    # -- what its turns ask

    def data(self) -> Any:
        """What its body gets."""
        data = self.spec.input_codec.decode(self._input) if self.spec.takes_data else None
        if not self.spec.is_step or self.made_as is None:
            return data
        return WorkItem(self.made_as.spec.name.removeprefix(FAILURE_PREFIX), data)

    def deadline_in(self) -> float | None:
        """Seconds, None for no deadline."""
        return None if self.deadline == math.inf else self.deadline - self._now

    def told_parent(self) -> ExecutionInfo | None:
        """What `context()` tells in a scheduled step."""
        if self.parent is None or not self.spec.is_step:
            return None
        of, spec = self.parent, self.parent.spec
        return ExecutionInfo(of.id, spec.task_name, of.data(), of.attempt, spec.retry.retries)

    def name_of_step(self, step: str) -> str:
        """The name that the result of one of its steps is kept under."""
        return self.made_as.spec.name if self.spec.is_step and self.made_as is not None else step

    def has_kept(self, step: str) -> bool:
        """Whether the result of one of its steps is known: it must never begin again."""
        holder = self.parent if self.spec.is_step and self.parent is not None else self
        return holder.journal.has(step_key(KeySpace.STEP, step))

    def unfinished(self) -> list[int]:
        """Keys of its children that have not ended."""
        return [key for key, child in self.children.items() if child.ending is None]

    # -- children

    def make(self, child: Child, work: DurableSpec, data: bytes) -> None:
        """Make a child, unless it is there. One whose outcome a retry took out of the journal runs again."""
        before = self.children.get(child.key)
        if before is not None and (before.ending is None or self.journal.has(child.key)):
            return
        self.children[child.key] = Execution(
            self.world,
            work,
            f"{CHILD_PREFIX}{self.number}/{self.run}/{child.spec.name}",
            data.decode(),
            timeout=child.spec.timeout,
            parent=self,
            made_as=child,
            run=1 if before is None else before.run + 1,
        )

    def hear_of(self, child: Execution) -> None:
        """A child has ended: keep its outcome, and go on if enough have."""
        ending, made_as, now = child.ending, child.made_as, self._now
        assert ending is not None
        assert made_as is not None
        row = Row(
            made_as.key,
            Kind.CHILD,
            ending.status,
            child.attempt + 1,
            made_as.spec.name,
            ending.output,
            ending.error,
            None,
            now - child._began_at,
            now,
            0,
        )
        if self.journal.keep(row) is None:
            self.journal.done += 1
            if self._is_parked and self.journal.done >= self._done_at:
                self._wake(now)

    # -- what happens to it

    def offer(self, name: str, text: str) -> EventAnswer:
        """Offer an event, its payload as JSON."""
        if self.ending is not None:
            return EventAnswer.FINISHED
        answer = self.journal.offer(name, text)
        if answer is EventAnswer.ACCEPTED:
            if self.current is not None:
                self.current.hear_soon()
            elif self._is_parked:
                self._wake(self._now)
        return answer

    def cancel(self) -> None:
        """End it and its children as cancelled."""
        self._stop(StoredStatus.CANCELLED)

    def child_at(self, path: str) -> Execution:
        """The child execution of this path; itself when that is empty.

        Raises:
            InvalidArgument: there is none.
        """
        found = next((each for each in self.everyone() if each.path == path and not each.spec.is_step), None)
        if found is None:
            elapsed = timedelta(seconds=self._now)
            raise InvalidArgument(
                f"execution {self.id!r} has no child execution {path!r} after {elapsed}; offer the event later, by"
                " after=..., and name a child's child with its parent, as 'order/payment'"
            )
        return found

    def why_stuck(self) -> str:
        """What it waits for, or what one under it does."""
        for each in self.everyone():
            if each.ending is None and (names := each.journal.awaited_events()):
                which = " and ".join(map(repr, names))
                of = f", child={each.path!r}" if each.path else ""
                return (
                    f"execution {each.id!r} waits for the event {which}, and nobody will offer it; say"
                    f" run.offer_event({names[0]!r}, ...{of}) before, with after=... for later, or give the wait a"
                    " timeout"
                )
        return f"execution {self.id!r} waits for nothing that is to come"

    def everyone(self) -> Iterator[Execution]:
        """It and all that are under it."""
        yield self
        for child in self.children.values():
            yield from child.everyone()
