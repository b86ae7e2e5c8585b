"""A call that has been named but not begun: what calling a step or a durable function gives."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, ClassVar, Generic, Never, Self, TypeVar

from typing_extensions import TypeVar as TypeVarWithDefault

from zart.engine import failure
from zart.engine.spec import ChildSpec
from zart.errors import StepFailed
from zart.names import checked_operation

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
E_co = TypeVarWithDefault("E_co", bound=Exception, covariant=True, default=Never)


class Call(Coroutine[Any, Any, T_co], Generic[T_co, E_co]):
    """Await it once, or pass it to one zart function, `asyncio.gather` or a task.

    T_co is the type of the result, E_co that of the errors it declares. A call equals only itself. One that is
    dropped without being awaited warns, as a coroutine does.
    """

    __slots__ = ("_begun", "_name")

    _what: ClassVar[str] = "step"
    """What messages call it."""

    _begun: Coroutine[Any, Any, T_co] | None
    _name: str | None

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> Self:
        self = super().__new__(cls)
        # Not by plain assignment: a subclass may be a frozen dataclass.
        object.__setattr__(self, "_begun", None)
        object.__setattr__(self, "_name", None)
        return self

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # @dataclass adds comparison by value unless there is one: gather() would run two like calls once.
        if "__eq__" not in cls.__dict__:
            cls.__eq__ = object.__eq__  # type: ignore[method-assign]
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]

    @property
    @abstractmethod
    def raises(self) -> tuple[type[Exception], ...]:
        """The errors this call declares: they come back as themselves."""

    @abstractmethod
    def resolved_name(self) -> str:
        """The name that the result is kept under: template filled in, `named` applied."""

    @abstractmethod
    def as_child(self) -> ChildSpec:
        """This call as an execution of its own, for `schedule`."""

    @abstractmethod
    def _begin(self) -> Coroutine[Any, Any, T_co]:
        """What runs when this call is awaited."""

    def named(self, name: str) -> Self:
        """This call under another name; names are unique in a run.

        Raises:
            InvalidArgument: the name cannot be used.
        """
        object.__setattr__(self, "_name", checked_operation(name, "a call"))
        return self

    def __await__(self) -> Generator[Any, Any, T_co]:
        if self._begun is not None:
            raise RuntimeError(f"cannot reuse already awaited {self!r}")
        return self._coroutine().__await__()

    def send(self, value: Any, /) -> Any:
        return self._coroutine().send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        coroutine = self._coroutine()
        return coroutine.throw(typ) if val is None and tb is None else coroutine.throw(typ, val, tb)

    def close(self) -> None:
        if self._begun is None:
            object.__setattr__(self, "_begun", _CLOSED)
        else:
            self._begun.close()

    def _coroutine(self) -> Coroutine[Any, Any, T_co]:
        begun = self._begun
        if begun is None:
            begun = self._begin()
            object.__setattr__(self, "_begun", begun)
        return begun

    def __del__(self) -> None:
        if self._begun is None:
            # Not by repr(): a subclass may have its own, and the object may be half made.
            warnings.warn(f"{self._shown()} was never awaited", RuntimeWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return self._shown()

    def _shown(self) -> str:
        name = self._name or self._declared_name()
        return f"<{type(self).__qualname__}{f' {name!r}' if name else ''}>"

    def _declared_name(self) -> str:
        """What the call's name was declared as, for messages; empty when only running code tells."""
        return ""


async def run_unscoped(call: Call[T, Any], invoke: Callable[[], Awaitable[T]]) -> T:
    """Run a call outside an execution: once, without retry, timeout or checkpoint, its errors mapped as inside."""
    call.resolved_name()
    try:
        return await invoke()
    except StepFailed:
        raise
    except Exception as error:
        if is_declared(call, error):
            raise
        raise as_step_failure(call, error) from error


def is_declared(call: Call[Any, Any], error: Exception) -> bool:
    """Whether the call declares the error. Errors of zart itself are no decisions, even when Exception is declared."""
    return failure.is_declared(error, call.raises)


def as_step_failure(call: Call[Any, Any], error: Exception) -> StepFailed:
    """The StepFailed that stands for the error of a call."""
    record = failure.step_failure(error, "failed", 1)
    return StepFailed(
        record["message"],
        step=call.resolved_name(),
        type_name=record["type"],
        traceback_text=record.get("traceback", ""),
        what=call._what,  # pyright: ignore[reportPrivateUsage]
    )


async def _nothing() -> Any:
    return None


_CLOSED = _nothing()
_CLOSED.close()
