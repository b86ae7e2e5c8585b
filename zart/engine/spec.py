"""What the engine knows of user code: a durable function, a step, and one call of a step.

The authoring layer (durable.py, steps.py) makes these; the engine never imports it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from zart.codec import Codec
from zart.config import DEFAULT_PRIORITY, DEFAULT_QUEUE
from zart.duration import RetryConfig

TimeoutScope = Literal["global", "per_attempt"]


@dataclass(frozen=True, slots=True)
class DurableSpec:
    """One durable function: how to decode its input, run its body and keep its result. `timeout` in seconds."""

    task_name: str
    invoke: Callable[[Any], Awaitable[Any]]
    input_codec: Codec
    output_codec: Codec
    retry: RetryConfig
    timeout: float | None = None
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    takes_data: bool = True


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step: how its result is kept and its failures are handled. `timeout` in seconds."""

    declared_name: str
    codec: Codec
    retry: RetryConfig
    timeout: float | None = None
    timeout_scope: TimeoutScope = "global"
    raises: tuple[type[Exception], ...] = ()
    queue: str | None = None
    in_thread: bool = False


class StepInvocation(Protocol):
    """One call of a step, with its arguments bound. `invoke` may be called once per try."""

    @property
    def spec(self) -> StepSpec: ...

    def resolved_name(self) -> str:
        """The checkpoint's name: template filled in, `.named()` applied."""
        ...

    def invoke(self) -> Awaitable[Any]:
        """Begin one try; plain functions run in a thread, with this task's context."""
        ...
