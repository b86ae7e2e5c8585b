"""What a body runs elsewhere: scheduled steps and child executions. Each is a work item that any worker may claim.

schedule   names the child; the next tick makes it, unless the history knows it
outcomes   waits for some of them; a parent that is parked meanwhile is woken when so many have ended
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from zart.codec import step_key
from zart.engine import failure
from zart.engine.batch import NEVER
from zart.engine.replay import Checkpoint
from zart.engine.spec import ChildSpec
from zart.engine.waits import pause
from zart.engine.where import where
from zart.errors import InvalidArgument, SerializationError, StepNotRegistered
from zart.model import KeySpace, Kind, Outcome

if TYPE_CHECKING:
    from zart.engine.turn import Turn


class Child:
    """One child of a turn. `outcome` is None until it is known; `asked`: the body has waited for it, to the end."""

    __slots__ = ("asked", "key", "outcome", "spec", "turn")

    def __init__(self, turn: Turn, spec: ChildSpec, key: int, outcome: Checkpoint | None) -> None:
        self.turn, self.spec, self.key, self.outcome = turn, spec, key, outcome
        self.asked = False

    def unwrap(self) -> Any:
        """Its result, or its error raised. Only when the outcome is known."""
        stored, spec = self.outcome, self.spec
        assert stored is not None
        if stored.status == Outcome.COMPLETED:
            try:
                return spec.codec.decode(stored.result or "null")
            except SerializationError as error:
                raise error.named(spec.name) from error.__cause__
        record = failure.decode(stored.error) if stored.error else None
        if spec.is_step:
            raise failure.rebuild(record or failure.CANCELLED, spec.name, spec.raises) from None
        raise failure.rebuild_child(record or failure.CANCELLED, spec.name) from None


class Family:
    """The children of one turn.

    Attributes:
        known: how many children's ends the body knows of. Never taken from a counter: only from what was read.
    """

    __slots__ = ("by_key", "known", "turn", "unmade", "waits")

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.by_key: dict[int, Child] = {}
        self.unmade: list[tuple[Child, bytes]] = []
        self.waits: dict[asyncio.Future[None], set[int]] = {}
        self.known = 0

    @classmethod
    def of(cls, turn: Turn) -> Family:
        """What the journal has of a turn's children."""
        history = turn.history
        if history is None:
            return CHILDLESS
        known = sum(1 for one in history.checkpoints.values() if one.kind == Kind.CHILD and one.epoch == 0)
        if not known and not history.made:
            return CHILDLESS
        family = cls(turn)
        family.known = known
        return family

    def schedule(self, spec: ChildSpec) -> Child:
        """Scope.schedule."""
        turn, history = self.turn, self.turn.history
        turn.check_may_call(f"schedule({spec.name.removeprefix(turn.prefix)!r})")
        key = step_key(KeySpace.STEP, spec.name)
        stored = history.find(key, spec.name, Kind.CHILD, turn.main) if history is not None else None
        is_made = stored is not None or (history is not None and key in history.made)
        data = b"" if is_made else self._checked_input(spec)  # what is refused has not used its name
        turn.claim_name(spec.name)
        child = self.by_key[key] = Child(turn, spec, key, stored)
        if not is_made:
            if not self.unmade:
                turn.loop.call_soon(self.make)
            self.unmade.append((child, data))
        return child

    def _checked_input(self, spec: ChildSpec) -> bytes:
        what = "step" if spec.is_step else "durable function"
        if not self.turn.host.serves(spec.task_name):
            raise StepNotRegistered(
                f"{what} {spec.task_name!r} cannot run as an execution of its own{where()}: it is not registered here,"
                " so no worker would take it; register it, in the registry or the module that the workers serve"
            )
        try:
            return self.turn.check_size(spec.input())
        except SerializationError as error:
            arguments = (
                f"arguments of step {spec.name!r}" if spec.is_step else f"input of child execution {spec.name!r}"
            )
            raise error.located(arguments) from error.__cause__

    def make(self) -> None:
        """Have all that was scheduled since the last time made by one tick."""
        turn, unmade = self.turn, self.unmade
        self.unmade = []
        if unmade and not turn.ended and turn.stop is None:
            made = turn.host.make_children(turn, unmade)
            turn.keep_late(made)

    async def outcomes(self, children: Sequence[Child]) -> None:
        """Wait until the outcome of each is known. The slot is given back meanwhile."""
        turn = self.turn
        await turn.may_call()
        for child in children:
            if child.turn is not turn:
                raise InvalidArgument(
                    f"the handle of {child.spec.name!r} was awaited{where()} in execution {turn.execution_id!r}, or a"
                    " pass of it, that has not scheduled it; await handles where they were made"
                )
        missing = {child.key for child in children if child.outcome is None}
        if missing:
            heard: asyncio.Future[None] = turn.loop.create_future()
            self.waits[heard] = missing
            try:
                await pause(turn, math.inf, heard)
            finally:
                del self.waits[heard]
        for child in children:
            child.asked = True

    def has_left_over(self) -> bool:
        """True when there are some whose outcome the body does not know: it never asked, or has given up."""
        return not all(child.asked for child in self.by_key.values())

    async def left_over(self) -> None:
        """Wait for those; raise what the first of them failed with."""
        left = [child for child in self.by_key.values() if not child.asked]
        await self.outcomes(left)
        for child in left:
            child.unwrap()

    def unwanted(self) -> int | None:
        """How many were left by earlier passes and never scheduled by this one; None for none."""
        history = None if self is CHILDLESS else self.turn.history
        return None if history is None else len(history.made - self.by_key.keys()) or None

    # -- news

    def is_busy(self) -> bool:
        """True while something is about to be made, or was heard that the body has not taken in."""
        return bool(self.unmade) or any(heard.done() for heard in self.waits)

    def awaited(self) -> int:
        """How many ends, those known included, at which one of the waits may be over."""
        return self.known + min(map(len, self.waits.values())) if self.waits else NEVER

    def unknown(self) -> list[int]:
        """Keys of the children whose end is not known, if the body waits for any."""
        return [key for key, child in self.by_key.items() if child.outcome is None] if self.waits else []

    def hear(self, found: Mapping[int, Checkpoint]) -> None:
        """Take in outcomes that were read."""
        news = {key for key in found if (child := self.by_key.get(key)) is not None and child.outcome is None}
        for key in news:
            self.by_key[key].outcome = found[key]
        self.known += len(news)
        for heard, missing in self.waits.items():
            if not missing.isdisjoint(news):  # thousands of handles may be gathered: what is not concerned costs little
                self.waits[heard] = left = missing - news
                if not left and not heard.done():
                    heard.set_result(None)


CHILDLESS = Family(cast("Any", None))
"""Of turns that have scheduled nothing: it holds no turn, so that these are freed without the garbage collector."""
