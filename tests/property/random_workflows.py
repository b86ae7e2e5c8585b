"""Workflows made at random: trees of everything a body can say, and the body that does what a tree says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hypothesis import strategies as st

import zart
from zart import RetryConfig, zart_durable, zart_step
from zart.durable import DurableWithoutData
from zart.errors import EventTimeout, RetryExhausted


class Declined(Exception):
    """A decision."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its value, how often it fails before it gives it, whether it gives up, declines, runs in a thread."""

    value: int
    failures: int = 0
    gives_up: bool = False
    declines: bool = False
    in_thread: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    units: int


@dataclass(frozen=True, slots=True)
class Event:
    """A wait for an event of its own. `offered`: units after the start, 0 before it, None never."""

    timeout: int | None
    offered: int | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A captured value, or the time."""

    is_time: bool


@dataclass(frozen=True, slots=True)
class Poll:
    """A loop that asks until the answer is yes."""

    rounds: int
    units: int


@dataclass(frozen=True, slots=True)
class Beside:
    """Branches in parallel."""

    branches: tuple[tuple[Node, ...], ...]
    in_group: bool


@dataclass(frozen=True, slots=True)
class Guarded:
    """Nodes in try, except and finally; at the end an error of the body's own, if it `raises`."""

    nodes: tuple[Node, ...]
    raises: bool


@dataclass(frozen=True, slots=True)
class FailOnce:
    """A step that fails the first pass of an execution."""


Node: TypeAlias = "Step | Sleep | Event | Kept | Poll | Beside | Guarded | FailOnce"


def trees(*, may_race: bool) -> st.SearchStrategy[tuple[Node, ...]]:
    """Workflows.

    Args:
        may_race: an event may be offered later though it has a timeout; only on a clock that nothing disturbs is it
            known which of the two is first.
    """
    values = st.integers(0, 9)
    units = st.integers(0, 3)
    steps: st.SearchStrategy[Node] = st.one_of(
        st.builds(Step, values),
        st.builds(Step, values, in_thread=st.just(True)),
        st.builds(Step, values, failures=st.integers(1, 3)),
        st.builds(Step, values, failures=st.integers(1, 2), gives_up=st.just(True)),
        st.builds(Step, values, declines=st.just(True)),
    )
    offered = st.one_of(st.none(), units if may_race else st.just(0))
    leaves: st.SearchStrategy[Node] = st.one_of(
        steps,
        st.builds(Sleep, units),
        st.builds(Event, units, offered),
        st.builds(Event, st.none(), units),
        st.builds(Kept, st.booleans()),
        st.builds(Poll, st.integers(1, 3), units),
    )

    def grown(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        several = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.one_of(
            st.builds(Beside, st.lists(several, min_size=2, max_size=3).map(tuple), st.booleans()),
            st.builds(Guarded, several, st.booleans()),
        )

    node = st.recursive(leaves, grown, max_leaves=10)
    return st.lists(st.one_of(node, node, node, st.builds(FailOnce)), min_size=1, max_size=4).map(tuple)


def events_of(nodes: Sequence[Node], path: str = "") -> dict[str, int]:
    """The events to be offered by name, and when."""
    found: dict[str, int] = {}
    for number, node in enumerate(nodes):
        here = f"{path}.{number}"
        if isinstance(node, Event) and node.offered is not None:
            found[f"event{here}"] = node.offered
        elif isinstance(node, Guarded):
            found |= events_of(node.nodes, here)
        elif isinstance(node, Beside):
            for index, branch in enumerate(node.branches):
                found |= events_of(branch, f"{here}.{index}")
    return found


@dataclass(slots=True)
class Workflow:
    """The body of a tree.

    Attributes:
        unit: seconds of one unit of waits.
        begun: told of each start of a step, by its name.
    """

    nodes: tuple[Node, ...]
    unit: float
    begun: Callable[[str], None] = field(default=lambda _: None)

    def durable(self) -> DurableWithoutData[Any]:
        """It as a durable function; a failed execution is retried once."""

        @zart_durable("random", retry=RetryConfig.fixed(1, self.unit))
        async def random() -> Any:
            return await self._all(self.nodes, "")

        return random

    async def _all(self, nodes: Sequence[Node], path: str) -> list[Any]:
        return [await self._one(node, f"{path}.{number}") for number, node in enumerate(nodes)]

    async def _one(self, node: Node, path: str) -> Any:
        match node:
            case Step():
                return await self._step(node, f"step{path}")
            case Sleep(units):
                return await zart.sleep(f"sleep{path}", units * self.unit)
            case Event(timeout):
                try:
                    seconds = None if timeout is None else timeout * self.unit
                    return await zart.wait_for_event(f"event{path}", str, timeout=seconds)
                except EventTimeout:
                    return "timed out"
            case Kept(is_time):
                if is_time:
                    return bool(await zart.now(f"now{path}"))
                return await zart.capture(f"capture{path}", lambda: path)
            case Poll(rounds, units):
                asked = 0
                while await self._step(Step(asked), f"ask{path}-{asked}") != rounds:
                    await zart.sleep(f"pause{path}-{asked}", units * self.unit)
                    asked += 1
                return asked
            case Beside():
                return await self._beside(node, path)
            case Guarded(nodes, raises):
                return await self._guarded(nodes, raises, path)
            case FailOnce():
                return await self._fail_once(path)

    async def _step(self, node: Step, name: str) -> int | str:
        failing = zart_step(
            name, retry=RetryConfig.fixed(node.failures - node.gives_up, self.unit) if node.failures else None
        )
        try:
            if node.in_thread:
                return await zart_step(name)(self._in_thread)(name, node.value)
            if node.declines:
                return await zart_step(name, raises=Declined)(self._declining)(name)
            return await failing(self._failing)(name, node.value, node.failures)
        except Declined as declined:
            return f"declined {declined}"
        except RetryExhausted as exhausted:
            return f"given up after {exhausted.attempts}"
        except zart.StepFailed as failed:
            if not node.gives_up:
                raise
            return f"given up at once: {failed.detail}"

    async def _failing(self, name: str, value: int, failures: int) -> int:
        self.begun(name)
        await asyncio.sleep(0)
        if zart.context().current_attempt < failures:
            raise ConnectionError(name)
        return value

    def _in_thread(self, name: str, value: int) -> int:
        self.begun(name)
        return value

    async def _declining(self, name: str) -> int:
        self.begun(name)
        raise Declined(name)

    async def _beside(self, node: Beside, path: str) -> list[Any]:
        branches = [self._all(branch, f"{path}.{index}") for index, branch in enumerate(node.branches)]
        if not node.in_group:
            return list(await asyncio.gather(*branches))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch) for branch in branches]
        return [task.result() for task in tasks]

    async def _guarded(self, nodes: Sequence[Node], raises: bool, path: str) -> list[Any]:
        done: list[Any] = []
        try:
            done += await self._all(nodes, path)
            if raises:
                raise LookupError(path)
        except Exception as error:
            done.append(await self._step(Step(len(str(error))), f"mend{path}"))
        finally:
            done.append(await self._step(Step(1), f"tidy{path}"))
        return done

    async def _fail_once(self, path: str) -> str:
        attempt = zart.context().current_attempt

        async def fail_once() -> str:
            self.begun(f"once{path}")
            if attempt == 0:
                raise ConnectionError(path)
            return "at last"

        return await zart_step(f"once{path}")(fail_once)()
