"""Steps: named calls whose results are kept. `zart_step` makes one of a function, `ZartStep` is the class form."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, Never, ParamSpec, Protocol, Self, TypeVar, overload

from zart.annotations import annotation_of, result_codec
from zart.arguments import Arguments, ArgumentsCodec
from zart.calls import Call, E_co, T_co, run_unscoped
from zart.codec import Codec, codec_for
from zart.config import DEFAULT_QUEUE
from zart.duration import Duration, Retry, RetryConfig, retry_of, timeout_of
from zart.engine.scope import current_scope
from zart.engine.spec import ChildSpec, DurableSpec, StepSpec, TimeoutScope, WorkItem
from zart.engine.threads import in_thread
from zart.errors import InvalidArgument, NonRetryable, RegistrationError, ZartError, shown
from zart.names import NameTemplate, checked_name, checked_operation, refuse_bare

P = ParamSpec("P")
P2 = ParamSpec("P2")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)
E1 = TypeVar("E1", bound=Exception)
E2 = TypeVar("E2", bound=Exception)
E3 = TypeVar("E3", bound=Exception)

_TYPE_VARIABLES = (TypeVar, type(E_co))


class ZartStep(Call[T_co, E_co]):
    """A step written as a class: an instance is one call, awaited once.

    The result is kept by the return annotation of `run`, else by the class's own argument. The second argument, if
    there is one, is the type of the declared errors (see `zart_step`).

    Example:
        >>> @dataclass
        ... class LookUpZip(ZartStep[str]):
        ...     code: str
        ...
        ...     def step_name(self) -> str:
        ...         return f"zip-{self.code}"
        ...
        ...     async def run(self) -> str: ...
    """

    __slots__ = ("_spec",)

    _spec: StepSpec

    @abstractmethod
    def step_name(self) -> str:
        """The name of this call; unique in a run, the same on every pass."""

    @abstractmethod
    async def run(self) -> T_co:
        """Do the work; called once per try."""

    def retry_config(self) -> Retry:
        """How failures are retried; not at all unless overridden."""
        return None

    def timeout(self) -> Duration | None:
        """How long it may take; None is without limit."""
        return None

    def timeout_scope(self) -> TimeoutScope:
        """Whether `timeout` is for all tries together ("global") or for each ("per_attempt")."""
        return "global"

    @property
    def raises(self) -> tuple[type[Exception], ...]:
        return describe_class(type(self))[1]

    @property
    def spec(self) -> StepSpec:
        """How the result is kept and failures are handled.

        Raises:
            RegistrationError: the result's annotation cannot be used.
        """
        try:
            return self._spec
        except AttributeError:
            spec = self._describe()
            object.__setattr__(self, "_spec", spec)
            return spec

    def _describe(self) -> StepSpec:
        name = type(self).__qualname__
        codec, raises = describe_class(type(self))
        timeout, scope = _checked_timeout(name, self.timeout(), self.timeout_scope())
        return StepSpec(name, codec, retry_of(self.retry_config()), timeout, scope, raises)

    def resolved_name(self) -> str:
        return self._name or checked_operation(self.step_name(), f"step {type(self).__qualname__}")

    def invoke(self) -> Awaitable[T_co]:
        """Begin one try."""
        return self.run()

    def as_child(self) -> ChildSpec:
        """This call as a work item. An instance is kept as it is, so its class must be one that can be kept.

        Raises:
            RegistrationError: it cannot.
        """
        cls, spec = type(self), self.spec
        return ChildSpec(
            name=self.resolved_name(),
            task_name=cls.__qualname__,
            queue=spec.queue,
            priority=None,
            input=functools.partial(instance_codec(cls).encode, Arguments((), _fields_of(self))),
            max_retries=0,
            timeout=None,
            codec=spec.codec,
            raises=spec.raises,
            is_step=True,
        )

    def _begin(self) -> Coroutine[Any, Any, T_co]:
        scope = current_scope.get()
        return run_unscoped(self, self.invoke) if scope is None else scope.run_step(self)


class StepCall(ZartStep[T_co, E_co]):
    """What calling a decorated step gives."""

    __slots__ = ("_arguments", "_keywords", "_step")

    _step: Step[..., T_co, E_co]
    _arguments: tuple[Any, ...]
    _keywords: dict[str, Any]

    @property
    def spec(self) -> StepSpec:
        return self._step.spec

    @property
    def raises(self) -> tuple[type[Exception], ...]:
        return self._step.raises

    def resolved_name(self) -> str:
        if self._name is not None:
            return self._name
        step = self._step
        return step.name if step.template is None else step.template.fill(self._arguments, self._keywords)

    def step_name(self) -> str:
        return self.resolved_name()

    def retry_config(self) -> RetryConfig:
        return self._step.retry

    def timeout(self) -> float | None:
        return self._step.timeout

    def timeout_scope(self) -> TimeoutScope:
        return self._step.timeout_scope

    def invoke(self) -> Awaitable[T_co]:
        """Begin one try; a plain function runs in a thread, with this task's context."""
        function = self._step.function
        if self._step.is_async:
            started: Coroutine[Any, Any, T_co] = function(*self._arguments, **self._keywords)
            return started
        return _run_in_thread(function, self._arguments, self._keywords)

    def as_child(self) -> ChildSpec:
        """This call as a work item.

        Raises:
            RegistrationError: values of a parameter's type cannot be kept.
        """
        step, spec = self._step, self.spec
        arguments = Arguments(self._arguments, self._keywords)
        return ChildSpec(
            name=self.resolved_name(),
            task_name=step.name,
            queue=spec.queue,
            priority=None,
            input=functools.partial(step.arguments.encode, arguments),
            max_retries=0,
            timeout=None,
            codec=spec.codec,
            raises=spec.raises,
            is_step=True,
        )

    async def run(self) -> T_co:
        return await self.invoke()

    def __await__(self) -> Generator[Any, Any, T_co]:
        # The hot path: as Call.__await__, without the detours that frozen subclasses need.
        if self._begun is not None:
            raise RuntimeError(f"cannot reuse already awaited {self!r}")
        scope = current_scope.get()
        self._begun = begun = run_unscoped(self, self.invoke) if scope is None else scope.run_step(self)
        return begun.__await__()

    def _declared_name(self) -> str:
        return self._step.name


class Step(Generic[P, T_co, E_co]):
    """What `zart_step` makes of a function. Calling it gives a StepCall; nothing runs before that is awaited.

    Attributes:
        function: the function itself.
        name: the declared name, template included.
        retry, timeout, timeout_scope, raises, queue: as declared; `timeout` in seconds.
        is_async: whether the function is `async def`; others run in a thread.
        template: how the name is filled in, or None when it is always the same.
    """

    timeout_scope: TimeoutScope

    def __init__(
        self,
        function: Callable[P, Any],
        name: str,
        retry: Retry,
        timeout: Duration | None,
        timeout_scope: TimeoutScope,
        raises: Any,
        queue: str | None,
    ) -> None:
        self.name = checked_operation(name, "a step", RegistrationError)
        self.is_async = _is_async(function, f"step {self.name!r}")
        self.function = function
        self.template = NameTemplate.read(self.name, function)
        self.retry = retry_of(retry, f"retry of step {name!r}")
        self.timeout, self.timeout_scope = _checked_timeout(name, timeout, timeout_scope)
        self.raises = _checked_raises(name, raises)
        self.queue = None if queue is None else checked_name(queue, f"the queue of step {name!r}", RegistrationError)
        functools.update_wrapper(self, function, updated=())

    @functools.cached_property
    def spec(self) -> StepSpec:
        """How the result is kept and failures are handled. Made when first asked for: at registration, or by a call.

        Raises:
            RegistrationError: the return annotation cannot be resolved or used.
        """
        codec = result_codec(self.function, f"result of step {self.name!r}")
        return StepSpec(
            self.name, codec, self.retry, self.timeout, self.timeout_scope, self.raises, self.queue, not self.is_async
        )

    @functools.cached_property
    def arguments(self) -> ArgumentsCodec:
        """How the arguments of a scheduled call are kept.

        Raises:
            RegistrationError: an annotation cannot be resolved, or values of it cannot be kept.
        """
        return ArgumentsCodec.of(self.function, f"step {self.name!r}")

    @property
    def work(self) -> DurableSpec:
        """How a worker runs a scheduled call.

        Raises:
            RegistrationError: as `arguments`; the step cannot be scheduled.
        """
        return _work_spec(self.name, self.arguments, self.spec, self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> StepCall[T_co, E_co]:
        # Past __new__ and __init__, which would double the cost: 0.3 us a call (python -m timeit).
        call: StepCall[T_co, E_co] = _new(StepCall)
        call._begun = call._name = None  # pyright: ignore[reportPrivateUsage]
        call._step = self  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage]
        call._arguments, call._keywords = args, kwargs  # pyright: ignore[reportPrivateUsage]
        return call

    @overload
    def __get__(self, instance: None, owner: Any, /) -> Self: ...
    @overload
    def __get__(self: Step[Concatenate[Any, P2], T, E], instance: object, owner: Any, /) -> Step[P2, T, E]: ...
    def __get__(self, instance: Any, owner: Any, /) -> Any:
        # A bound method hands attributes through, so `.spec` and the like are there too.
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<Step {self.name!r}>"


class StepDecorator(Protocol[E_co]):
    """What `zart_step(...)` gives: it takes an async or a plain function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Step[P, T, E_co]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Step[P, T, E_co]: ...


@overload
def zart_step(
    name: str,
    *,
    retry: Retry = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "global",
    raises: tuple[()] = (),
    queue: str | None = None,
) -> StepDecorator[Never]: ...
@overload
def zart_step(
    name: str,
    *,
    retry: Retry = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "global",
    raises: type[E1] | tuple[type[E1]],
    queue: str | None = None,
) -> StepDecorator[E1]: ...
@overload
def zart_step(
    name: str,
    *,
    retry: Retry = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "global",
    raises: tuple[type[E1], type[E2]],
    queue: str | None = None,
) -> StepDecorator[E1 | E2]: ...
@overload
def zart_step(
    name: str,
    *,
    retry: Retry = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "global",
    raises: tuple[type[E1], type[E2], type[E3]],
    queue: str | None = None,
) -> StepDecorator[E1 | E2 | E3]: ...
@overload
def zart_step(
    name: str,
    *,
    retry: Retry = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "global",
    raises: tuple[type[Exception], ...],
    queue: str | None = None,
) -> StepDecorator[Exception]: ...
def zart_step(
    name: str,
    *,
    retry: Retry = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "global",
    raises: Any = (),
    queue: str | None = None,
) -> Any:
    """Make a step of a function: in an execution, its result is kept and a committed one never runs again.

    Args:
        name: identity of the result in its run; may hold parameters, as "provision-{region}", of type str, int, bool,
            UUID, Enum or date.
        retry: a RetryConfig or its text, as "exponential(3, 2s)"; none by default.
        timeout: how long it may take; a step whose time is up is not retried.
        timeout_scope: "global" (all tries and the delays between them) or "per_attempt".
        raises: error types that are decisions: never retried, they come back as themselves.
        queue: where the step goes when it is scheduled; None is the queue of its execution.

    Raises:
        RegistrationError: the name or the function cannot be used.
        InvalidArgument: a duration or a retry text cannot be read.

    Example:
        >>> @zart_step("send-email", retry="exponential(3, 2s)", timeout="30s")
        ... async def send_email(address: str) -> None: ...
    """
    refuse_bare(name, "zart_step")

    def decorate(function: Callable[..., Any]) -> Step[..., Any, Any]:
        return Step(function, name, retry, timeout, timeout_scope, raises, queue)

    return decorate


_new: Callable[[type[StepCall[Any, Any]]], StepCall[Any, Any]] = object.__new__


async def _run_in_thread(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    value = await in_thread(functools.partial(_call_plainly, function, arguments, keywords))
    return await value if inspect.isawaitable(value) else value


def _call_plainly(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    try:
        return function(*arguments, **keywords)
    except StopIteration as error:
        # A future refuses it, so whoever waits for the thread would wait for ever.
        raise RuntimeError(f"{function.__qualname__} raised StopIteration") from error


def _is_async(function: object, what: str) -> bool:
    """Whether a function is `async def`.

    Raises:
        RegistrationError: it is no function that can be called with arguments and gives one result.
    """
    given = shown(function)
    if not callable(function) or isinstance(function, type | staticmethod | classmethod | Step):
        raise RegistrationError(f"{what} must be a function, got {given}; decorate the function itself")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RegistrationError(f"{what} is a generator; return a list, or make each item a step")
    return inspect.iscoroutinefunction(function)


def _checked_timeout(name: str, timeout: Duration | None, scope: TimeoutScope) -> tuple[float | None, TimeoutScope]:
    if scope not in ("global", "per_attempt"):
        raise InvalidArgument(f'timeout_scope of step {name!r} must be "global" or "per_attempt", got {shown(scope)}')
    return timeout_of(timeout, f"timeout of step {name!r}"), scope


def _checked_raises(name: str, raises: object) -> tuple[type[Exception], ...]:
    declared = typing.cast("tuple[object, ...]", raises if isinstance(raises, tuple) else (raises,))
    for one in declared:
        given = shown(one)
        if not isinstance(one, type) or not issubclass(one, Exception):
            raise RegistrationError(f"raises of step {name!r} must hold exception types, got {given}")
        if issubclass(one, ZartError) and not issubclass(one, NonRetryable):
            raise RegistrationError(
                f"raises of step {name!r} must hold your own exception types; {one.__qualname__} is one of zart's"
            )
    return typing.cast("tuple[type[Exception], ...]", declared)


def work_of_class(cls: type[ZartStep[Any, Any]]) -> DurableSpec:
    """How a worker runs a scheduled call of a step class.

    Raises:
        RegistrationError: its annotations cannot be used, or instances cannot be kept.
    """
    codec, raises = describe_class(cls)
    spec = StepSpec(cls.__qualname__, codec, RetryConfig.none(), raises=raises)
    return _work_spec(cls.__qualname__, instance_codec(cls), spec, cls)


@functools.cache
def instance_codec(cls: type[ZartStep[Any, Any]]) -> ArgumentsCodec:
    """How instances of a step class are kept when they are scheduled: by their fields.

    Raises:
        RegistrationError: the class is no dataclass, or a field's annotation cannot be used.
    """
    if not dataclasses.is_dataclass(cls):
        raise RegistrationError(
            f"step class {cls.__qualname__} cannot be scheduled: another worker makes its instance again, of its"
            " fields; make it a @dataclass"
        )
    return ArgumentsCodec.of(cls.__init__, f"step class {cls.__qualname__}", is_method=True)


def _fields_of(step: Any) -> dict[str, Any]:
    return {one.name: getattr(step, one.name) for one in dataclasses.fields(step) if one.init}


def _work_spec(
    name: str, codec: ArgumentsCodec, spec: StepSpec, make: Callable[..., ZartStep[Any, Any]]
) -> DurableSpec:
    def invoke(item: WorkItem) -> ZartStep[Any, Any]:
        return make(*item.arguments.positional, **item.arguments.keywords).named(item.name)

    return DurableSpec(
        task_name=name,
        invoke=invoke,
        input_codec=codec,
        output_codec=spec.codec,
        retry=RetryConfig.none(),
        queue=spec.queue or DEFAULT_QUEUE,
        is_step=True,
    )


@functools.cache
def describe_class(cls: type[ZartStep[Any, Any]]) -> tuple[Codec, tuple[type[Exception], ...]]:
    """Codec of the result and declared errors of a step class.

    Raises:
        RegistrationError: its annotations cannot be resolved or used.
    """
    where = f"result of step {cls.__qualname__}"
    result, *errors = _class_arguments(cls)
    annotation = annotation_of(cls.run, "return", where)
    codec = codec_for(result if annotation is None else annotation, where=where)
    declared = [one for error in errors for one in (typing.get_args(error) or (error,))]
    given = tuple(one for one in declared if one not in (Never, Any) and not isinstance(one, _TYPE_VARIABLES))
    return codec, _checked_raises(cls.__qualname__, given)


def _class_arguments(cls: type) -> tuple[Any, ...]:
    """What ZartStep[...] was given in the bases of a class."""
    for base in cls.__mro__:
        for given in getattr(base, "__orig_bases__", ()):
            if typing.get_origin(given) is ZartStep:
                return typing.get_args(given)
    return (None,)
