"""Registries: what can be registered, under which name, and what a text names."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zart.durable import DurableExecution, zart_durable
from zart.errors import DuplicateTaskName, RegistrationError
from zart.registry import TaskRegistry, load_registry
from zart.steps import ZartStep, zart_step

Write = Callable[..., str]

WORKFLOWS = """
from zart.durable import DurableExecution, zart_durable
from zart.registry import TaskRegistry
from zart.steps import zart_step

@zart_step("charge")
async def charge(cents: int) -> int:
    return cents

@zart_durable("order")
async def order(data: int) -> int:
    return await charge(data)

registry = TaskRegistry()
registry.register("renamed", order)
empty = TaskRegistry()
"""


@zart_step("charge")
async def charge(cents: int) -> int:
    return cents


@zart_durable("order")
async def order(data: int) -> int:
    return await charge(data)


class Doubling(DurableExecution[int, int], name="doubling"):
    async def run(self, data: int) -> int:
        return 2 * data


def module(**members: Any) -> ModuleType:
    made = ModuleType("workflows")
    vars(made).update(members)
    return made


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module of a name not used before into the current directory; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def write(source: str) -> str:
        name = f"written_{tmp_path.name.replace('-', '_')}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


# -- register


def test_a_durable_function_is_registered_under_its_name() -> None:
    registry = TaskRegistry()
    registry.register(order)
    assert dict(registry.durables) == {"order": order.spec}
    assert len(registry) == 1


async def test_a_durable_function_is_registered_under_another_name() -> None:
    registry = TaskRegistry()
    registry.register("renamed", order)
    spec = registry.durables["renamed"]
    assert spec.task_name == "renamed"
    assert await spec.invoke(3) == 3


@pytest.mark.parametrize("durable", [Doubling, Doubling()])
async def test_a_durable_class_is_registered_as_class_or_instance(durable: Any) -> None:
    registry = TaskRegistry()
    registry.register(durable)
    assert await registry.durables["doubling"].invoke(3) == 6


def test_a_step_is_registered_under_its_declared_name() -> None:
    registry = TaskRegistry()
    registry.register(charge)
    assert dict(registry.steps) == {"charge": charge}
    assert len(registry) == 0


def test_the_same_object_may_be_registered_twice() -> None:
    registry = TaskRegistry()
    for one in (order, order, charge, charge):
        registry.register(one)
    assert (len(registry.durables), len(registry.steps)) == (1, 1)


def test_two_functions_of_one_name_are_refused_and_both_named() -> None:
    @zart_durable("order")
    async def other(data: int) -> int:
        return data

    registry = TaskRegistry()
    registry.register(order)
    with pytest.raises(DuplicateTaskName, match=r"'order' is used by .*\.order and by .*\.other; rename one"):
        registry.register(other)
    assert registry.durables["order"] is order.spec


def test_a_step_and_a_durable_function_do_not_share_a_name() -> None:
    registry = TaskRegistry()
    registry.register(charge)
    with pytest.raises(DuplicateTaskName, match="'charge'"):
        registry.register("charge", order)


@pytest.mark.parametrize("wrong", [3, "order", order.function, int, None])
def test_what_is_no_durable_function_or_step_is_refused(wrong: Any) -> None:
    with pytest.raises(RegistrationError):
        TaskRegistry().register(wrong)


def test_an_unusable_name_is_refused() -> None:
    with pytest.raises(RegistrationError, match="must not be empty"):
        TaskRegistry().register("", order)


def test_annotations_are_checked_at_registration() -> None:
    @zart_durable("bad-input")
    async def bad_input(data: threading.Thread) -> None: ...

    @zart_step("bad-result")
    async def bad_result() -> threading.Thread:
        raise NotImplementedError

    registry = TaskRegistry()
    with pytest.raises(RegistrationError, match="input of durable function 'bad-input'"):
        registry.register(bad_input)
    with pytest.raises(RegistrationError, match="result of step 'bad-result'"):
        registry.register(bad_result)
    assert (len(registry.durables), len(registry.steps)) == (0, 0)


def test_a_class_that_needs_arguments_is_refused_with_the_remedy() -> None:
    class Scaled(Doubling, name="scaled"):
        def __init__(self, factor: int) -> None:
            self.factor = factor

    with pytest.raises(RegistrationError, match=r"cannot be made without arguments.*register an instance"):
        TaskRegistry().register(Scaled)


def test_lifespan_is_kept_and_must_make_a_context_manager() -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield

    assert TaskRegistry(lifespan).lifespan is lifespan
    assert TaskRegistry().lifespan is None
    wrong: Any
    for wrong in (lifespan(), 3):
        with pytest.raises(RegistrationError, match="lifespan must be a function"):
            TaskRegistry(wrong)


def test_the_mappings_cannot_be_written() -> None:
    durables: Any = TaskRegistry().durables
    with pytest.raises(TypeError):
        durables["x"] = order.spec


# -- modules


def test_a_module_gives_its_durables_classes_and_steps() -> None:
    registry = TaskRegistry()
    registry.register_module(module(order=order, again=order, charge=charge, Doubling=Doubling, x=3, int=int))
    assert set(registry.durables) == {"order", "doubling"}
    assert set(registry.steps) == {"charge"}


def test_an_instance_stands_for_its_class() -> None:
    instance = Doubling()
    registry = TaskRegistry()
    registry.register_module(module(Doubling=Doubling, doubling=instance))
    assert registry.durables["doubling"] is instance.spec


def test_abstract_and_nameless_classes_of_a_module_are_passed_over() -> None:
    class Unnamed(DurableExecution[int, int]):
        async def run(self, data: int) -> int:
            return data

    registry = TaskRegistry()
    registry.register_module(module(order=order, DurableExecution=DurableExecution, Unnamed=Unnamed))
    assert set(registry.durables) == {"order"}


def test_a_module_without_durable_functions_is_refused() -> None:
    with pytest.raises(RegistrationError, match="module workflows has no durable functions"):
        TaskRegistry().register_module(module(charge=charge))


def test_two_functions_of_one_name_in_a_module_are_refused() -> None:
    @zart_durable("order")
    async def other(data: int) -> int:
        return data

    with pytest.raises(DuplicateTaskName, match="'order'"):
        TaskRegistry().register_module(module(order=order, other=other))


def test_steps_that_are_methods_or_classes_of_the_module_are_checked() -> None:
    class Billing:
        @zart_step("charge")
        async def charge(self) -> threading.Thread:
            raise NotImplementedError

    class LookUp(ZartStep[threading.Thread]):
        def step_name(self) -> str:
            return "look-up"

        async def run(self) -> threading.Thread:
            raise NotImplementedError

    for cls in (Billing, LookUp):
        cls.__module__ = "workflows"
        with pytest.raises(RegistrationError, match="result of step"):
            TaskRegistry().register_module(module(order=order, cls=cls))


# -- load_registry


def test_a_module_name_gives_all_it_has(write: Write) -> None:
    registry = load_registry(write(WORKFLOWS))
    assert (set(registry.durables), set(registry.steps)) == ({"order"}, {"charge"})


def test_a_colon_names_a_registry_of_the_module(write: Write) -> None:
    name = write(WORKFLOWS)
    assert set(load_registry(f"{name}:registry").durables) == {"renamed"}


@pytest.mark.parametrize("target", ["", ":", "a:", "a/b.py", "a b", ".a", "a.", "a:b:c", "a-b", "a:b.c"])
def test_a_text_that_names_no_module_is_refused_with_an_example(target: str) -> None:
    with pytest.raises(RegistrationError, match=r"names no module; .*myapp\.workflows:registry"):
        load_registry(target)


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("target", ["no_such_module", "no_such_package.workflows", "email.no_such_module"])
def test_a_missing_module_is_named_with_the_directory(target: str) -> None:
    with pytest.raises(RegistrationError, match=r"there is no module 'no_such|there is no module 'email\.no_such"):
        load_registry(target)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("def (", "failed: SyntaxError: "),
        ("raise ValueError('two\\nlines')", "failed: ValueError: two lines"),
    ],
)
def test_a_module_that_fails_to_import_says_why_in_one_line(write: Write, source: str, message: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        load_registry(write(source))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_import_names_the_innermost_line_of_the_users_code(write: Write) -> None:
    boom = write("import json\n\ndef read():\n    json.loads('{')\n\nread()")
    with pytest.raises(RegistrationError, match=rf"JSONDecodeError: .* \({boom}\.py:4\)$"):
        load_registry(boom)
    outer = write(f"import {boom}")
    with pytest.raises(RegistrationError, match=rf"importing {outer} failed: .* \({boom}\.py:4\)$"):
        load_registry(outer)


def test_a_failure_in_a_decorator_of_zart_names_the_users_line(write: Write) -> None:
    name = write("from zart.steps import zart_step\n\n@zart_step('a', retry='often')\nasync def a(): ...")
    with pytest.raises(RegistrationError, match=rf"\({name}\.py:3\)$"):
        load_registry(name)


@pytest.mark.parametrize("rest", ["", ":registry"])
def test_the_name_of_a_file_is_answered_with_the_name_of_its_module(write: Write, rest: str) -> None:
    name = write(WORKFLOWS)
    with pytest.raises(RegistrationError, match=rf"'{name}\.py' names no module; leave out \.py: {name}$"):
        load_registry(f"{name}.py{rest}")
    with pytest.raises(RegistrationError, match=r"names no module; leave out \.py, and write it as in an import"):
        load_registry(f"./{name}.py{rest}")


def test_a_module_without_durable_functions_cannot_be_loaded(write: Write) -> None:
    with pytest.raises(RegistrationError, match="has no durable functions"):
        load_registry(write("x = 1"))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("missing", "has no 'missing'; a TaskRegistry is needed, such as .*:registry"),
        ("order", "is a durable function, not a TaskRegistry; .*use --app"),
        ("charge", "is a step, not a TaskRegistry"),
        ("DurableExecution", "is a durable function"),
        ("__name__", "is an object of type str"),
        ("empty", "has no durable functions"),
    ],
)
def test_a_colon_must_name_a_registry_with_durable_functions(write: Write, attribute: str, message: str) -> None:
    name = write(WORKFLOWS)
    with pytest.raises(RegistrationError, match=message):
        load_registry(f"{name}:{attribute}")
