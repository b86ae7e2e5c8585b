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
from zart.errors import Failure

TimeoutScope = Literal["global", "per_attempt"]


@dataclass(frozen=True, slots=True)
class DurableSpec:
    """One durable function: how to decode its input, run its body and keep its result. `timeout` in seconds.

    A scheduled step is served by one too (`is_step`): its data is a WorkItem, its body the step's call.
    `on_failure` is called with the input and why the execution failed; None if there is no handler.
    """

    task_name: str
    invoke: Callable[[Any], Awaitable[Any]]
    input_codec: Codec
    output_codec: Codec
    retry: RetryConfig
    timeout: float | None = None
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    takes_data: bool = True
    is_step: bool = False
    on_failure: Callable[[Any, Failure], Awaitable[Any]] | None = None


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


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A scheduled step to be run: the name of its outcome, and its arguments as `input_codec` decodes them."""

    name: str
    arguments: Any


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One call that runs as an execution of its own, under its parent: a scheduled step, or a durable function.

    Attributes:
        name: of its outcome in the parent's journal.
        task_name: what a worker claims it by.
        queue: None is the parent's. So is `priority`.
        input: makes its JSON, when it is to be made.
        max_retries: of the execution; a step's own retries are not among them.
        timeout: in seconds from when it is made, None: only the parent's deadline counts.
        codec, raises: how its outcome comes back.
    """

    name: str
    task_name: str
    queue: str | None
    priority: int | None
    input: Callable[[], bytes]
    max_retries: int
    timeout: float | None
    codec: Codec
    raises: tuple[type[Exception], ...]
    is_step: bool


class ChildInvocation(Protocol):
    """One call that can run as an execution of its own."""

    def resolved_name(self) -> str: ...

    def as_child(self) -> ChildSpec: ...


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
