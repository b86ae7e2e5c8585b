"""Durable functions. `zart_durable` makes one of a function, `DurableExecution` is the class form."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Never, Protocol, TypedDict, TypeVar, Unpack, overload

from zart.annotations import parameter_codec, result_codec
from zart.calls import Call, run_unscoped
from zart.codec import PLAIN
from zart.config import DEFAULT_PRIORITY, DEFAULT_QUEUE
from zart.duration import Duration, Retry, RetryConfig, retry_of, timeout_of
from zart.engine.scope import Scope, current_scope
from zart.engine.spec import ChildSpec, DurableSpec
from zart.errors import Failure, InvalidArgument, RegistrationError, shown
from zart.names import checked_name, checked_operation, refuse_bare

D = TypeVar("D")
D2 = TypeVar("D2")
R = TypeVar("R")
R2 = TypeVar("R2")
D_contra = TypeVar("D_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

# The queue keeps twice the priority, and one more, as a smallint.
MAX_PRIORITY = 1000


class DurableExecution(ABC, Generic[D_contra, R_co]):
    """A durable function written as a class; registered as an instance, or as the class when that needs no arguments.

    Class arguments: `name` (the task's name), `queue`, `priority` (0 is served first).

    Example:
        >>> class Onboarding(DurableExecution[OnboardingData, Receipt], name="onboarding"):
        ...     async def run(self, data: OnboardingData) -> Receipt: ...
    """

    task_name: str = ""
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY

    def __init_subclass__(
        cls, *, name: str | None = None, queue: str | None = None, priority: int | None = None, **keywords: Any
    ) -> None:
        super().__init_subclass__(**keywords)
        if name is not None:
            cls.task_name = checked_operation(name, "a durable function", RegistrationError)
        if queue is not None:
            cls.queue = checked_name(queue, f"the queue of {cls.__qualname__}", RegistrationError)
        if priority is not None:
            cls.priority = _checked_priority(cls.task_name, priority)

    @abstractmethod
    async def run(self, data: D_contra) -> R_co:
        """The body: from the start on each pass, with kept results of what was done before."""

    async def on_failure(self, data: D_contra, failure: Failure) -> R_co | None:
        """The failure handler, if a class has one: as `on_failure` of `zart_durable`."""
        return None

    def max_retries(self) -> int:
        """How often a failed execution is passed over again: after 1 s, then twice as long each time, up to 5 min."""
        return 0

    def retry_config(self) -> Retry:
        """Count and delays of an execution's retries; those of `max_retries` unless overridden."""
        return retries_of(self.max_retries(), self.task_name)

    def timeout(self) -> Duration | None:
        """How long an execution may take from its start to its end, retries and waits included; None is no limit."""
        return None

    @functools.cached_property
    def spec(self) -> DurableSpec:
        """What the engine needs to know. Made when first asked for, which registration does.

        Raises:
            RegistrationError: body, failure handler or annotations cannot be used.
        """
        has_none = type(self).on_failure is DurableExecution[Any, Any].on_failure
        return describe_body(self, self.run, type(self).__qualname__, None if has_none else self.on_failure)

    def __call__(self, data: D_contra, /) -> ChildCall[R_co]:
        """A call to await: outside an execution, it runs the body once, with nothing kept."""
        return ChildCall(self, data)


class Durable(DurableExecution[D_contra, R_co]):
    """What `zart_durable` makes of a function with one parameter. `function` is the function itself."""

    def __init__(
        self,
        function: Callable[..., Coroutine[Any, Any, R_co]],
        name: str,
        retry: RetryConfig,
        timeout: float | None,
        queue: str,
        priority: int,
        on_failure: Callable[..., Awaitable[Any]] | None,
    ) -> None:
        self.function = function
        self.task_name, self.queue, self.priority = name, queue, priority
        self._retry, self._timeout, self._handler = retry, timeout, on_failure
        functools.update_wrapper(self, function, updated=())

    async def run(self, data: D_contra) -> R_co:
        return await self.function(data)

    async def on_failure(self, data: D_contra, failure: Failure) -> R_co | None:
        handle = self.spec.on_failure
        return None if handle is None else await handle(data, failure)

    def max_retries(self) -> int:
        return self._retry.retries

    def retry_config(self) -> RetryConfig:
        return self._retry

    def timeout(self) -> float | None:
        return self._timeout

    @functools.cached_property
    def spec(self) -> DurableSpec:
        return describe_body(self, self.function, self.function.__qualname__, self._handler)

    def __repr__(self) -> str:
        return f"<Durable {self.task_name!r}>"


class DurableWithoutData(Durable[None, R_co]):
    """What `zart_durable` makes of a function without parameters."""

    async def run(self, data: None = None) -> R_co:
        return await self.function()

    def __call__(self, data: None = None, /) -> ChildCall[R_co]:
        return super().__call__(None)


class DurableDecorator(Protocol):
    """What `zart_durable(...)` gives: it takes an async function with one parameter, or none."""

    @overload
    def __call__(self, function: Callable[[D], Coroutine[Any, Any, R]], /) -> Durable[D, R]: ...
    @overload
    def __call__(self, function: Callable[[], Coroutine[Any, Any, R]], /) -> DurableWithoutData[R]: ...


class HandledDecorator(Generic[D, R]):
    """What `zart_durable(..., on_failure=...)` gives, to type checkers: what the handler takes and gives fits the body.

    A handler that takes any `object` fits every body, and so does one that gives None.
    """

    @overload
    def __call__(
        self: HandledDecorator[object, Never], function: Callable[[D2], Coroutine[Any, Any, R2]], /
    ) -> Durable[D2, R2]: ...
    @overload
    def __call__(
        self: HandledDecorator[object, R], function: Callable[[D2], Coroutine[Any, Any, R]], /
    ) -> Durable[D2, R]: ...
    @overload
    def __call__(
        self: HandledDecorator[D, Never], function: Callable[[D], Coroutine[Any, Any, R2]], /
    ) -> Durable[D, R2]: ...
    @overload
    def __call__(self, function: Callable[[D], Coroutine[Any, Any, R]], /) -> Durable[D, R]: ...
    def __call__(self, function: Any, /) -> Any: ...


class HandledDecoratorWithoutData(Generic[R]):
    """As HandledDecorator, of a body without parameter."""

    @overload
    def __call__(
        self: HandledDecoratorWithoutData[Never], function: Callable[[], Coroutine[Any, Any, R2]], /
    ) -> DurableWithoutData[R2]: ...
    @overload
    def __call__(self, function: Callable[[], Coroutine[Any, Any, R]], /) -> DurableWithoutData[R]: ...
    def __call__(self, function: Any, /) -> Any: ...


class DurableOptions(TypedDict, total=False):
    """What `zart_durable` takes besides a name and a failure handler."""

    timeout: Duration | None
    max_retries: int
    retry: Retry
    queue: str
    priority: int


@overload
def zart_durable(name: str, *, on_failure: None = None, **options: Unpack[DurableOptions]) -> DurableDecorator: ...
@overload
def zart_durable(
    name: str,
    *,
    on_failure: Callable[[D, Failure], Coroutine[Any, Any, R | None]],
    **options: Unpack[DurableOptions],
) -> HandledDecorator[D, R]: ...
@overload
def zart_durable(
    name: str, *, on_failure: Callable[[Failure], Coroutine[Any, Any, R | None]], **options: Unpack[DurableOptions]
) -> HandledDecoratorWithoutData[R]: ...
def zart_durable(
    name: str,
    *,
    timeout: Duration | None = None,
    max_retries: int = 0,
    retry: Retry = None,
    on_failure: Callable[..., Awaitable[Any]] | None = None,
    queue: str = DEFAULT_QUEUE,
    priority: int = DEFAULT_PRIORITY,
) -> Any:
    """Make a durable function of an async function with one parameter, or none.

    Args:
        name: the task's name; executions are found by it, so it stays when the function is renamed.
        timeout: how long an execution may take from its start to its end, retries and waits included.
        max_retries: how often a failed execution is passed over again; the delays are 1 s, 2 s, 4 s, ... up to 5 min.
        retry: count and delays instead, as a RetryConfig or its text.
        on_failure: an async function that runs once the execution has failed for good: past its deadline, or with no
            retry left; not after a cancel or when it is quarantined. It takes what the body takes, and then the failure
            (StepFailed, BodyFailed, DeadlineExceeded or RetriesExhausted). What it returns is the execution's result,
            kept as the body's; when it returns None or raises, the execution has failed with the first failure. It is
            resumed after a crash as a body is, and may do what a body may. The deadline does not count for it.
        queue: where executions wait, unless the start says otherwise.
        priority: 0 is served first, 1000 last; strictly, so a steady stream of lower numbers starves higher ones.

    Raises:
        RegistrationError: the name or the function cannot be used.
        InvalidArgument: a duration, a retry text or a number cannot be used.

    Example:
        >>> @zart_durable("onboarding", timeout="10m")
        ... async def onboarding(data: OnboardingData) -> Receipt: ...
    """
    refuse_bare(name, "zart_durable")
    name = checked_operation(name, "a durable function", RegistrationError)
    what = f"durable function {name!r}"
    config = retries_of(max_retries, name)
    if retry is not None:
        if config.retries:
            raise RegistrationError(f"{what} has both retry and max_retries; keep the one you mean")
        config = retry_of(retry, f"retry of {what}")
    seconds = timeout_of(timeout, f"timeout of {what}")
    queue = checked_name(queue, f"the queue of {what}", RegistrationError)
    _checked_priority(name, priority)

    def decorate(function: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
        parameter = body_parameter(function, what)
        if on_failure is not None:
            checked_handler(on_failure, parameter, what)
        make: Any = Durable if parameter is not None else DurableWithoutData
        return make(function, name, config, seconds, queue, priority, on_failure)

    return decorate


class ChildCall(Call[R_co, Never]):
    """What calling a durable function gives. Outside an execution, awaiting it runs the body once."""

    __slots__ = ("_data", "_durable")

    _what = "durable function"

    def __init__(self, durable: DurableExecution[Any, R_co], data: Any) -> None:
        self._durable, self._data = durable, data

    @property
    def raises(self) -> tuple[type[Exception], ...]:
        return ()

    def resolved_name(self) -> str:
        return self._name or self._durable.task_name

    def _declared_name(self) -> str:
        return self._durable.task_name

    def as_child(self) -> ChildSpec:
        """This call as an execution of its own.

        Raises:
            RegistrationError: body or annotations cannot be used.
        """
        spec = self._durable.spec
        return ChildSpec(
            name=self.resolved_name(),
            task_name=spec.task_name,
            queue=spec.queue,
            priority=spec.priority,
            input=functools.partial(spec.input_codec.encode, self._data) if spec.takes_data else _no_input,
            max_retries=spec.retry.retries,
            timeout=spec.timeout,
            codec=spec.output_codec,
            raises=(),
            is_step=False,
        )

    def _begin(self) -> Coroutine[Any, Any, R_co]:
        scope = current_scope.get()
        return run_unscoped(self, self._run) if scope is None else self._run_as_child(scope)

    async def _run(self) -> R_co:
        return await self._durable.run(self._data)

    async def _run_as_child(self, scope: Scope) -> R_co:
        child = scope.schedule(self)
        await scope.wait_for_children([child])
        result: R_co = child.unwrap()
        return result


def _no_input() -> bytes:
    return b"null"


def retries_of(max_retries: int, name: str) -> RetryConfig:
    """What `max_retries` stands for: exponential(n, 1s, max_delay=5m).

    Raises:
        InvalidArgument: it is no whole number, negative or too large.
    """
    try:
        config = RetryConfig.exponential(max_retries, "1s", max_delay="5m")
    except InvalidArgument as error:
        raise InvalidArgument(f"max_retries of durable function {name!r}: {error}") from None
    return config if config.retries else RetryConfig.none()


def body_parameter(function: object, what: str) -> str | None:
    """The name of a body's parameter, or None when it takes none.

    Raises:
        RegistrationError: it is not `async def`, or takes more than one argument.
    """
    if not callable(function) or isinstance(function, type) or not inspect.iscoroutinefunction(function):
        raise RegistrationError(f"{what} must be an `async def` function, got {shown(function)}")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        return None
    if len(parameters) > 1:
        names = ", ".join(str(one).partition(":")[0] for one in parameters)
        raise RegistrationError(
            f"{what} takes {len(parameters)} parameters ({names}); a body takes one or none:"
            " put them into a dataclass and take that"
        )
    if parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise RegistrationError(f"{what} takes {parameters[0]}; its one parameter must be a plain one")
    return parameters[0].name


def checked_handler(
    handler: Callable[..., Awaitable[Any]], parameter: str | None, what: str
) -> Callable[[Any, Failure], Awaitable[Any]]:
    """A failure handler as the engine calls it: with data and failure, whatever the body takes.

    Args:
        parameter: the name of the body's, None when it takes none.

    Raises:
        RegistrationError: it is not `async def`, or does not take that.
    """
    if isinstance(handler, type) or not inspect.iscoroutinefunction(handler):
        raise RegistrationError(f"on_failure of {what} must be an `async def` function, got {shown(handler)}")
    wanted = ("failure",) if parameter is None else (parameter, "failure")
    signature = inspect.signature(handler)
    try:
        signature.bind(*wanted)
    except TypeError:
        takes = ", ".join(signature.parameters) or "nothing"
        raise RegistrationError(
            f"on_failure of {what} takes {takes}; it must take what the body takes and then the failure:"
            f" ({', '.join(wanted)})"
        ) from None
    return handler if parameter is not None else lambda _data, failure: handler(failure)


def describe_body(
    durable: DurableExecution[Any, Any],
    body: Callable[..., Awaitable[Any]],
    label: str,
    handler: Callable[..., Awaitable[Any]] | None,
) -> DurableSpec:
    """The spec of a durable function.

    Args:
        durable: it.
        body: the function whose parameter and annotations count.
        label: what it is called in the code, for errors when it has no name.
        handler: its failure handler, if it has one.

    Raises:
        RegistrationError: body, handler, name or annotations cannot be used.
    """
    if not durable.task_name:
        raise RegistrationError(f'{label} has no name; write `class {label}(DurableExecution[...], name="...")`')
    name = checked_operation(durable.task_name, f"durable function {label}", RegistrationError)
    what = f"durable function {name!r}"
    parameter = body_parameter(body, what)
    return DurableSpec(
        task_name=name,
        invoke=body if parameter else _ignoring_data(body),
        input_codec=parameter_codec(body, parameter, f"input of {what}") if parameter else PLAIN,
        output_codec=result_codec(body, f"result of {what}"),
        retry=retry_of(durable.retry_config(), f"retry of {what}"),
        timeout=timeout_of(durable.timeout(), f"timeout of {what}"),
        queue=checked_name(durable.queue, f"the queue of {what}", RegistrationError),
        priority=_checked_priority(name, durable.priority),
        takes_data=parameter is not None,
        on_failure=None if handler is None else checked_handler(handler, parameter, what),
    )


def _ignoring_data(body: Callable[[], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    return lambda _data: body()


def _checked_priority(name: str, priority: int) -> int:
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidArgument(
            f"priority of durable function {name!r} must be a whole number from 0 to {MAX_PRIORITY},"
            f" got {shown(priority)}"
        )
    return priority
