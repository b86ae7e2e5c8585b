"""A turn of the engine that tells of every start of a step, and keeps what its children are to run."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from zart.durable import ChildCall
from zart.engine.children import Child
from zart.engine.spec import ChildInvocation, DurableSpec, StepInvocation, StepSpec
from zart.engine.turn import Turn
from zart.steps import StepCall, ZartStep, work_of_class

if TYPE_CHECKING:
    from zart.testing.turns import Pass


class WatchedTurn(Turn):
    """Tells of every start of a step.

    Attributes:
        works: what each child runs, by its key.
    """

    __slots__ = ("_pass", "works")

    def __init__(self, host: Pass, number: int, run: int, epoch: int, seen: int) -> None:
        super().__init__(host, number, run, epoch, 0, seen)
        self._pass = host
        self.works: dict[int, DurableSpec] = {}

    async def run_step(self, call: StepInvocation) -> Any:
        return await super().run_step(_WatchedCall(call, self._pass))

    def schedule(self, call: ChildInvocation) -> Child:
        child = super().schedule(call)
        self.works[child.key] = self._pass.served(child.spec.task_name) or _work_of(
            cast("ChildCall[Any] | ZartStep[Any, Any]", call)
        )
        return child


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


def _work_of(call: ChildCall[Any] | ZartStep[Any, Any]) -> DurableSpec:
    """What a worker that serves the call's step or durable function would run."""
    if isinstance(call, ChildCall):
        return call._durable.spec  # pyright: ignore[reportPrivateUsage]
    if isinstance(call, StepCall):
        return call._step.work  # pyright: ignore[reportPrivateUsage]
    return work_of_class(type(call))
