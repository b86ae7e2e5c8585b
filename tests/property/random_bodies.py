"""The body that does what the tree of a random workflow says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zart
from tests.property.random_workflows import Beside, Child, Event, FailOnce, Fan, Guarded, Kept, Node, Poll, Sleep, Step
from zart import BusinessErr, Ok, RetryConfig, StepHandle, ZartErr, zart_durable, zart_step
from zart.durable import Durable, DurableWithoutData
from zart.errors import ChildFailed, EventTimeout, RetryExhausted


class Declined(Exception):
    """A decision."""


@dataclass(slots=True)
class Workflow:
    """The body of a tree.

    Attributes:
        unit: seconds of one unit of waits.
        begun: told of each start of a step, by its name.
        has_database: steps that write do so, into the table `written`, which takes each name once.
        durable: it as a durable function; a failed execution is retried once.
        elsewhere: what has to be registered for its children.
    """

    nodes: tuple[Node, ...]
    unit: float
    begun: Callable[[str], None] = field(default=lambda _: None)
    has_database: bool = False
    durable: DurableWithoutData[Any] = field(init=False)
    elsewhere: list[Any] = field(init=False)
    _child: Durable[str, Any] = field(init=False)
    _scheduled: dict[str, Any] = field(init=False)
    _children: dict[str, Child] = field(default_factory=dict[str, Child])

    def __post_init__(self) -> None:
        again = RetryConfig.fixed(1, self.unit)

        @zart_durable("random", retry=again)
        async def random() -> Any:
            return await self._all(self.nodes, "")

        async def mend(path: str, failure: zart.ZartError) -> Any:
            nodes = self._children[path].mended
            return None if nodes is None else [type(failure).__name__, *await self._all(nodes, f"{path}.mend")]

        @zart_durable("child", retry=again, on_failure=mend)
        async def child(path: str) -> Any:
            done = await self._all(self._children[path].nodes, path)
            if self._children[path].fails:
                raise LookupError(path)
            return done

        @zart_durable("fails-once")
        async def fails_once(path: str, /) -> str:
            return await self._failing_once(*path.split(" "))

        self.durable, self._child = random, child
        self._scheduled = {
            "thread": zart_step("thread")(self._in_thread),
            "writing": zart_step("writing")(self._writing),
            "declining": zart_step("declining", raises=Declined)(self._declining),
            "once": zart_step("once")(self._failing_once),
            "child once": fails_once,
        }
        for retries in range(4):
            retry = RetryConfig.fixed(retries, self.unit) if retries else None
            self._scheduled[f"failing {retries}"] = zart_step(f"failing-{retries}", retry=retry)(self._failing)
        self.elsewhere = [child, *self._scheduled.values()]

    async def _all(self, nodes: Sequence[Node], path: str) -> list[Any]:
        return [await self._one(node, f"{path}.{number}") for number, node in enumerate(nodes)]

    async def _one(self, node: Node, path: str) -> Any:
        match node:
            case Step():
                return await self._told(self._step(node, f"step{path}"))
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
            case FailOnce(at):
                return await self._fail_once(at, path)
            case Child():
                return await self._told(self._call(node, path))
            case Fan():
                return await self._fan(node, path)

    # -- steps, in the body and elsewhere

    async def _told(self, call: Awaitable[Any]) -> Any:
        """What comes of it, failures as text."""
        try:
            return await call
        except Exception as error:
            return _text_of(error)

    def _step(self, node: Step, name: str) -> Any:
        """A call of it."""
        if node.in_thread:
            return self._scheduled["thread"](name, node.value).named(name)
        if node.writes:
            return self._scheduled["writing"](name, node.value).named(name)
        if node.declines:
            return self._scheduled["declining"](name).named(name)
        failing = self._scheduled[f"failing {node.failures - node.gives_up}"]
        return failing(name, node.value, node.failures).named(name)

    def _call(self, node: Child | Step, path: str) -> Any:
        if isinstance(node, Step):
            return self._step(node, f"step{path}")
        self._children[path] = node
        return self._child(path).named(f"child{path}")

    async def _failing(self, name: str, value: int, failures: int) -> int:
        self.begun(name)
        await asyncio.sleep(0)
        if zart.context().current_attempt < failures:
            raise ConnectionError(name)
        return value

    def _in_thread(self, name: str, value: int) -> int:
        self.begun(name)
        return value

    async def _writing(self, name: str, value: int) -> int:
        self.begun(name)
        if self.has_database:
            conn = await zart.trx()
            await conn.execute("insert into written values ($1)", name)
        return value

    async def _declining(self, name: str) -> int:
        self.begun(name)
        raise Declined(name)

    async def _failing_once(self, attempt: str, path: str) -> str:
        self.begun(f"once{path}")
        if attempt == "0":
            raise ConnectionError(path)
        return "at last"

    async def _fail_once(self, at: str, path: str) -> str:
        attempt = str(zart.context().current_attempt)
        if at == "child":
            told: str = await self._scheduled["child once"](f"{attempt} {path}").named(f"once{path}")
            return told
        call = self._scheduled["once"](attempt, path).named(f"once{path}")
        value: str = await (zart.schedule(call) if at == "scheduled" else call)
        return value

    # -- several

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

    async def _fan(self, node: Fan, path: str) -> list[Any]:
        made = [zart.schedule(self._call(call, f"{path}.{index}")) for index, call in enumerate(node.calls)]
        if node.sleep is not None:
            await zart.sleep(f"between{path}", node.sleep * self.unit)
        turn = node.turned_by % len(made)
        handles = made[turn:] + made[:turn]
        found = await self._awaited(node.how, handles)
        return found[len(made) - turn :] + found[: len(made) - turn]

    async def _awaited(self, how: str, handles: list[StepHandle[Any, Any]]) -> list[Any]:
        half = len(handles) // 2
        match how:
            case "wait":
                return [_outcome_text(one) for one in await zart.wait(handles)]
            case "wait for halves":
                last = await zart.wait(handles[half:])
                return [_outcome_text(one) for one in [*await zart.wait(handles[:half]), *last]]
            case "gather":
                found = await asyncio.gather(*handles, return_exceptions=True)
                return [_text_of(one) if isinstance(one, Exception) else one for one in found]
            case "each":
                return [await self._told(handle) for handle in reversed(handles)][::-1]
            case "twice":
                first = [_outcome_text(one) for one in await zart.wait(handles)]
                assert first == [await self._told(handle) for handle in handles]
                return first
            case _:
                return []


def _outcome_text(outcome: Any) -> Any:
    match outcome:
        case Ok(value):
            return value
        case BusinessErr(error) | ZartErr(error):
            return _text_of(error)


def _text_of(error: Exception) -> str:
    match error:
        case Declined():
            return f"declined {error}"
        case RetryExhausted():
            return f"given up after {error.attempts}"
        case ChildFailed():
            return f"child failed: {error.detail}"
        case zart.StepFailed():
            return f"given up at once: {error.detail}"
        case _:
            raise error
