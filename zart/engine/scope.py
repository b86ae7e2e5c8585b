"""Where user code is running: in a body (a turn), in a step (an attempt), or in neither."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from zart.codec import Codec
from zart.engine.spec import ChildInvocation, StepInvocation
from zart.engine.where import where
from zart.errors import NotInExecution
from zart.model import ExecutionInfo
from zart.postgres.connection import Connection

if TYPE_CHECKING:
    from zart.engine.children import Child
    from zart.engine.host import Host


class Scope(Protocol):
    """What the free functions of flow.py call. A turn implements it; inside a step, the attempt does."""

    async def run_step(self, call: StepInvocation) -> Any:
        """Run the step, or replay its checkpoint; raise what the step's failure comes back as."""
        ...

    async def capture(self, name: str, function: Callable[[], Any], codec: Codec) -> Any:
        """Keep the value of a pure synchronous function."""
        ...

    async def now(self, name: str) -> datetime:
        """Keep the database's UTC time."""
        ...

    async def sleep(self, name: str, seconds: float) -> None:
        """Wait durably for so many seconds."""
        ...

    async def sleep_until(self, name: str, when: datetime) -> None:
        """Wait durably for a moment."""
        ...

    async def wait_for_event(self, name: str, codec: Codec, timeout: float | None) -> Any:
        """Wait durably for an event; EventTimeout after `timeout` seconds."""
        ...

    def schedule(self, call: ChildInvocation) -> Child:
        """Have a call run as an execution of its own; does not wait."""
        ...

    async def wait_for_children(self, children: Sequence[Child]) -> None:
        """Wait durably until the outcome of each is known."""
        ...

    async def trx(self) -> Connection:
        """Begin the step's own transaction."""
        ...

    def info(self) -> ExecutionInfo: ...

    def facts(self) -> dict[str, object]:
        """What log lines of its code carry."""
        ...

    def whose(self) -> tuple[Host, int]:
        """Where it is noted that its code runs, and under which number."""
        ...

    def know_task(self, task: asyncio.Task[Any]) -> None:
        """Its code has made this task."""
        ...


_IN_A_BODY = "call it in the body of a @zart_durable function that a worker runs; in a test, run that by zart.testing"

current_scope: ContextVar[Scope | None] = ContextVar("zart_scope", default=None)


def require_scope(what: str, remedy: str = _IN_A_BODY) -> Scope:
    """The scope this code runs in.

    Args:
        remedy: where `what` is to be called.

    Raises:
        NotInExecution: it runs in none.
    """
    scope = current_scope.get()
    if scope is None:
        raise NotInExecution(f"{what} was called outside an execution{where()}; {remedy}")
    return scope
