"""Which durable functions and steps a worker serves."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeAlias, TypeGuard, overload

from zart.durable import DurableExecution
from zart.engine.spec import DurableSpec
from zart.errors import DuplicateTaskName, RegistrationError, shown
from zart.names import checked_name
from zart.steps import Step, ZartStep, describe_class, work_of_class

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]
AnyDurable: TypeAlias = DurableExecution[Any, Any]
AnyStep: TypeAlias = Step[..., Any, Any]

_FOREIGN = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))


class TaskRegistry:
    """The durable functions and steps that workers serve, by name.

    Registering checks all that can be checked before a worker runs: names, parameters, annotations.

    Args:
        lifespan: makes an async context manager, as a function under `@asynccontextmanager` does; each worker process
            enters it before its first claim and leaves it after its last (HTTP clients and the like).

    Example:
        >>> registry = TaskRegistry()
        >>> registry.register(onboarding)
    """

    def __init__(self, lifespan: Lifespan | None = None) -> None:
        if lifespan is not None and not _makes_context(lifespan):
            raise RegistrationError(
                f"lifespan must be a function that makes an async context manager, got {shown(lifespan)};"
                " pass the function under @asynccontextmanager itself, not its result"
            )
        self.lifespan = lifespan
        self._durables: dict[str, DurableSpec] = {}
        self._steps: dict[str, AnyStep] = {}
        self._work: dict[str, DurableSpec] = {}
        self._origins: dict[str, object] = {}

    @property
    def durables(self) -> Mapping[str, DurableSpec]:
        """The durable functions by task name."""
        return MappingProxyType(self._durables)

    @property
    def steps(self) -> Mapping[str, AnyStep]:
        """The steps by declared name."""
        return MappingProxyType(self._steps)

    @property
    def served(self) -> Mapping[str, DurableSpec]:
        """All that a worker with this registry claims, by name: durable functions, and steps that can be scheduled."""
        return MappingProxyType(self._durables | self._work)

    def __len__(self) -> int:
        """How many durable functions there are."""
        return len(self._durables)

    @overload
    def register(self, durable: AnyDurable | type[AnyDurable] | AnyStep | type[ZartStep[Any, Any]], /) -> None: ...
    @overload
    def register(self, name: str, durable: AnyDurable | type[AnyDurable], /) -> None: ...
    def register(self, first: Any, second: Any = None, /) -> None:
        """Serve a durable function (under its own name, or the one given) or a step.

        Raises:
            DuplicateTaskName: another function has the name.
            RegistrationError: it is neither, or its annotations cannot be used.
        """
        if isinstance(first, str):
            if _is_step(second) or _is_step_class(second):
                raise RegistrationError(f"{second!r} is served under its own name; leave out {shown(first)}")
            self._add_durable(second, checked_name(first, "a durable function", RegistrationError))
        elif second is not None:
            raise RegistrationError(f"write register(name, durable): the name must be text, got {shown(first)}")
        elif _is_step(first):
            self._add_step(first)
        elif _is_step_class(first):
            self._add_step_class(first)
        else:
            self._add_durable(first, None)

    def register_module(self, module: ModuleType) -> None:
        """Serve all durable functions and steps that a module defines or imports.

        Raises:
            DuplicateTaskName: two different functions have one name.
            RegistrationError: there is no durable function, or one cannot be used.
        """
        if not isinstance(module, ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RegistrationError(f"register_module takes a module, got {shown(module)}; register() takes functions")
        found = list(vars(module).values())
        durables = [*filter(_is_durable, found), *_classes(found)]
        if not durables:
            raise RegistrationError(
                f"module {module.__name__} has no durable functions; decorate one with @zart_durable, or name the"
                " module that has them"
            )
        for durable in durables:
            self._add_durable(durable, None)
        for one in found:
            if _is_step(one):
                self._add_step(one)
            elif isinstance(one, type) and one.__module__ == module.__name__:
                _check_steps_of(one)
                if _is_step_class(one) and not inspect.isabstract(one):
                    self._add_step_class(one)

    def _add_durable(self, durable: Any, name: str | None) -> None:
        made = _instance_of(durable)
        spec = made.spec if name is None else dataclasses.replace(made.spec, task_name=name)
        self._claim(spec.task_name, durable)
        self._durables[spec.task_name] = spec

    def _add_step(self, step: AnyStep) -> None:
        self._claim(step.spec.declared_name, step)
        self._steps[step.name] = step
        with contextlib.suppress(RegistrationError):  # it takes what cannot be kept: it runs in bodies only
            self._work[step.name] = step.work

    def _add_step_class(self, cls: type[ZartStep[Any, Any]]) -> None:
        self._claim(cls.__qualname__, cls)
        describe_class(cls)
        with contextlib.suppress(RegistrationError):
            self._work[cls.__qualname__] = work_of_class(cls)

    def _claim(self, name: str, origin: object) -> None:
        # One namespace for both: a scheduled step waits in the queue under its name, as an execution does.
        holder = self._origins.setdefault(name, origin)
        if holder is not origin:
            raise DuplicateTaskName(
                f"the name {name!r} is used by {_place(holder)} and by {_place(origin)}; rename one of them"
            )


def load_registry(target: str) -> TaskRegistry:
    """The registry that a text names; the current directory can be imported from.

    Args:
        target: "myapp.workflows" for all that a module has, or "myapp.workflows:registry" for a TaskRegistry in it.

    Raises:
        RegistrationError: there is no such module or registry, its import fails, or it has no durable functions.
    """
    path, colon, attribute = target.partition(":")
    if not all(part.isidentifier() for part in path.split(".")) or (colon and not attribute.isidentifier()):
        hint = "leave out .py, and " if path.endswith(".py") else ""
        raise RegistrationError(
            f"{target!r} names no module; {hint}write it as in an import, like myapp.workflows or"
            " myapp.workflows:registry"
        )
    module = _import(path)
    if not colon:
        registry = TaskRegistry()
        registry.register_module(module)
        return registry
    if not hasattr(module, attribute):
        raise RegistrationError(f"module {path} has no {attribute!r}; {_instead(module, path)}")
    found = getattr(module, attribute)
    if not isinstance(found, TaskRegistry):
        raise RegistrationError(f"{target!r} is {_described(found)}; {_instead(module, path)}")
    if not found.durables:
        raise RegistrationError(f"{target!r} has no durable functions; register some")
    return found


def _described(found: object) -> str:
    if _is_durable(found) or _is_durable_class(found):
        return "a durable function, not a TaskRegistry"
    return "a step, not a TaskRegistry" if _is_step(found) else f"an object of type {type(found).__name__}"


def _instead(module: ModuleType, path: str) -> str:
    """What to name in place of an attribute that is no TaskRegistry."""
    registries = [name for name, value in vars(module).items() if isinstance(value, TaskRegistry)]
    named = f"a TaskRegistry is needed, such as {path}:{registries[0]}" if registries else "a TaskRegistry is needed"
    return f"{named}, or use --app {path} for all durable functions of the module"


def _import(path: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise _import_failure(path, error) from error
        if path.endswith(".py"):
            raise RegistrationError(f"{path!r} names no module; leave out .py: {path.removesuffix('.py')}") from error
        raise RegistrationError(
            f"there is no module {error.name!r} in {here} or among the installed packages; run this where {path} can be"
            " imported, or set PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise _import_failure(path, error) from error


def _import_failure(path: str, error: Exception) -> RegistrationError:
    what = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
    place = None if isinstance(error, SyntaxError) else _failed_line(error)  # a SyntaxError's text names its line
    return RegistrationError(f"importing {path} failed: {what}{'' if place is None else f' ({place})'}")


def _failed_line(error: Exception) -> str | None:
    """File and line of the innermost frame that is the user's code, as `shop/flows.py:7`; None if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_foreign(Path(frame.filename))]
    if not frames:
        return None
    file = Path(frames[-1].filename)
    here = Path.cwd()
    return f"{file.relative_to(here) if file.is_relative_to(here) else file}:{frames[-1].lineno}"


def _is_foreign(file: Path) -> bool:
    """Whether a source file is zart's, Python's or an installed package's."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return installed or not file.is_absolute() or any(map(file.is_relative_to, _FOREIGN))


def _instance_of(durable: object) -> AnyDurable:
    if _is_durable_class(durable):
        try:
            return durable()
        except TypeError as error:
            raise RegistrationError(
                f"durable class {durable.__qualname__} cannot be made without arguments: {error}; register an instance"
            ) from error
    if _is_durable(durable):
        return durable
    raise RegistrationError(
        f"{shown(durable)} is neither a durable function nor a step; decorate it with @zart_durable or @zart_step"
    )


def _classes(found: list[Any]) -> Iterator[type[AnyDurable]]:
    """Named durable classes that no instance in the module stands for."""
    instances = {type(one) for one in found if _is_durable(one)}
    for one in found:
        if _is_durable_class(one) and one not in instances and one.__dict__.get("task_name"):
            yield one


def _check_steps_of(cls: type) -> None:
    """Let annotations that cannot be used be known now: of a step class, or of steps that are methods."""
    if _is_step_class(cls) and not inspect.isabstract(cls):
        describe_class(cls)
    for member in vars(cls).values():
        if _is_step(member):
            _ = member.spec


def _makes_context(lifespan: object) -> bool:
    # What a function under @asynccontextmanager gives is callable too, as a decorator.
    return callable(lifespan) and not isinstance(lifespan, AbstractAsyncContextManager)


def _is_durable(value: object) -> TypeGuard[AnyDurable]:
    return isinstance(value, DurableExecution)


def _is_durable_class(value: object) -> TypeGuard[type[AnyDurable]]:
    return isinstance(value, type) and issubclass(value, DurableExecution)


def _is_step(value: object) -> TypeGuard[AnyStep]:
    return isinstance(value, Step)


def _is_step_class(value: object) -> TypeGuard[type[ZartStep[Any, Any]]]:
    return isinstance(value, type) and issubclass(value, ZartStep)


def _place(origin: Any) -> str:
    shown: Any = origin if isinstance(origin, type) else getattr(origin, "function", None) or type(origin)
    return f"{shown.__module__}.{shown.__qualname__}"
