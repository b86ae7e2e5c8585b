"""Names: which are usable, and how templates are filled in."""

from __future__ import annotations

from datetime import date, datetime
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest

from zart.errors import InvalidArgument, RegistrationError
from zart.names import MAX_NAME_BYTES, NameTemplate, checked_name


class Region(Enum):
    EU = "eu-west-1"
    US = object()


class Size(IntEnum):
    SMALL = 1


def example(a: Any, b: Any = 7, *rest: Any, c: Any = "c", **more: Any) -> None: ...


def filled(text: str, *arguments: Any, **keywords: Any) -> str:
    template = NameTemplate.read(text, example)
    assert template is not None
    return template.fill(arguments, keywords)


@pytest.mark.parametrize(
    "name", ["", "a\0b", "x" * (MAX_NAME_BYTES + 1), "é" * MAX_NAME_BYTES, "\ud800", None, 3, b"x"]
)
def test_an_unusable_name_is_refused_with_the_owner_named(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="name of a step"):
        checked_name(name, "a step")


def test_the_longest_name_is_accepted() -> None:
    assert checked_name("é" * (MAX_NAME_BYTES // 2), "a step") == "é" * (MAX_NAME_BYTES // 2)


def test_a_name_without_parameters_has_no_template() -> None:
    assert NameTemplate.read("send-email", example) is None


def test_a_template_takes_positional_keyword_and_default_values() -> None:
    assert filled("{a}/{b}/{c}", 1) == "1/7/c"
    assert filled("{a}/{b}/{c}", 1, 2, c=3) == "1/2/3"
    assert filled("{a}/{b}", b=2, a=1) == "1/2"


def test_doubled_braces_are_braces_of_the_name() -> None:
    assert filled("{{{a}}}", 1) == "{1}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (5, "5"),
        (True, "True"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 12), "2024-02-29T12:00:00"),
        (Region.EU, "eu-west-1"),
        (Region.US, "US"),
        (Size.SMALL, "SMALL"),
    ],
)
def test_a_value_of_an_allowed_type_becomes_part_of_the_name(value: object, text: str) -> None:
    assert filled("s-{a}", value) == f"s-{text}"


@pytest.mark.parametrize("value", [None, 1.5, b"x", ["x"], {"x": 1}, object()])
def test_a_value_of_another_type_is_refused_by_parameter(value: object) -> None:
    with pytest.raises(InvalidArgument, match=rf"'s-{{a}}': a is of type {type(value).__name__}.*named"):
        filled("s-{a}", value)


@pytest.mark.parametrize("value", ["", "\0", "x" * MAX_NAME_BYTES])
def test_a_filled_name_is_checked_as_any_other(value: str) -> None:
    template = NameTemplate.read("{a}" if not value else "s-{a}", example)
    assert template is not None
    with pytest.raises(InvalidArgument):
        template.fill((value,), {})


def test_a_call_without_the_argument_is_told_so() -> None:
    with pytest.raises(TypeError, match="without its argument 'a'"):
        filled("s-{a}")


@pytest.mark.parametrize(
    "text", ["{x}", "{}", "{0}", "{a.b}", "{a[0]}", "{rest}", "{more}", "{a!r}", "{a:>3}", "{a", "a}"]
)
def test_a_template_that_names_no_parameter_is_refused(text: str) -> None:
    with pytest.raises(RegistrationError, match="step name"):
        NameTemplate.read(text, example)


def test_the_refusal_of_a_template_lists_the_parameters() -> None:
    with pytest.raises(RegistrationError, match="its parameters: a, b, c"):
        NameTemplate.read("{x}", example)
