"""Records of errors, and the errors that come back of them in a process that may know other types."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.junk import HUGE, Broken
from tests.support.junk import shown as junk_id
from zart.engine.failure import (
    declared_failure,
    decode,
    describe,
    encode,
    execution_failure,
    is_declared,
    one_line,
    rebuild,
    step_failure,
)
from zart.errors import (
    DuplicateStepName,
    EventTimeout,
    NonRetryable,
    RetryExhausted,
    SerializationError,
    StepFailed,
    StepTimedOut,
    shown,
)
from zart.steps import zart_step


class Declined(Exception):
    pass


class Expired(Declined):
    pass


class Other(Exception):
    pass


def stored(error: Exception, **changes: Any) -> dict[str, Any]:
    """The record of a declared error, as another process reads it; `changes` are what that one does not know."""
    return {**decode(encode(declared_failure(error, 1)).decode()), **changes}


def test_a_declared_type_is_found_among_the_subclasses_of_those_declared() -> None:
    assert type(rebuild(stored(Expired()), "s", (Other, Declined))) is Expired


def test_a_type_that_is_gone_comes_back_as_the_declared_one_it_was_derived_from() -> None:
    error = rebuild(stored(Expired("visa", 7), type="shop.Gone"), "s", (Other, Declined))
    assert (type(error), error.args) == (Declined, ("visa", 7))


def test_a_type_that_is_not_declared_any_more_comes_as_data() -> None:
    error = rebuild(stored(Declined("no")), "pay", (Other,))
    assert type(error) is StepFailed
    assert str(error) == f"step 'pay' failed: {__name__}.Declined: no"


def test_no_declared_types_at_all_make_it_data() -> None:
    assert type(rebuild(stored(Declined("no")), "pay", ())) is StepFailed


def test_two_types_with_very_long_names_are_told_apart() -> None:
    one, two = (type("N" * 10_000 + end, (Declined,), {}) for end in ("a", "bb"))
    assert type(rebuild(stored(two("no")), "s", (one, two))) is two
    assert type(rebuild(stored(one("no")), "s", (one, two))) is one


def test_a_type_that_cannot_be_made_without_its_arguments_comes_as_data() -> None:
    class Grouped(ExceptionGroup[Exception]):
        pass

    record = stored(Declined(), type=f"{__name__}.{Grouped.__qualname__}")
    assert type(rebuild(record, "s", (Grouped,))) is StepFailed


def test_a_slot_that_was_never_set_stays_unset() -> None:
    class Slotted(Exception):
        __slots__ = ("code",)

    error = rebuild(stored(Slotted("x")), "s", (Slotted,))
    assert isinstance(error, Slotted)
    assert not hasattr(error, "code")


def test_private_attributes_of_a_base_and_of_its_subclass_are_kept_apart() -> None:
    class Base(Exception):
        __slots__ = ("__code",)

        def __init__(self, code: int) -> None:
            self.__code = code

        def base(self) -> int:
            return self.__code

    class Derived(Base):
        __slots__ = ("__code",)

        def __init__(self, code: int) -> None:
            super().__init__(-code)
            self.__code = code

        def derived(self) -> int:
            return self.__code

    error = rebuild(stored(Derived(5)), "s", (Derived,))
    assert isinstance(error, Derived)
    assert (error.base(), error.derived()) == (-5, 5)


@pytest.mark.parametrize("error", [DuplicateStepName("x"), EventTimeout("x"), StepFailed("x"), StepTimedOut("x")])
def test_errors_of_zart_are_no_decisions(error: Exception) -> None:
    assert not is_declared(error, (Exception,))
    assert is_declared(NonRetryable("x"), (Exception,))


@pytest.mark.parametrize(
    ("kind", "made"),
    [("failed", StepFailed), ("exhausted", RetryExhausted), ("timed_out", StepTimedOut)],
)
def test_a_failure_comes_back_as_what_its_kind_says(kind: str, made: type[Exception]) -> None:
    record = decode(encode(step_failure(ValueError("v"), kind, 3)).decode())
    error = rebuild(record, "s", (ValueError,))
    assert type(error) is made
    assert isinstance(error, StepFailed)
    assert (error.step, error.type_name, error.detail, error.attempts) == ("s", "ValueError", "v", 3)


def test_a_refused_value_comes_back_with_a_path_of_bounded_length() -> None:
    record = step_failure(SerializationError("no", path="$." + "x" * 1_000_000), "serialization", 1)
    assert len(encode(record)) < 2_000
    error = rebuild(record, "s", ())
    assert isinstance(error, SerializationError)
    assert (error.path[:4], error.reason) == ("$.xx", "no")


def test_causes_are_told_nearest_first_and_each_once() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    assert describe(first)["causes"] == ["KeyError: 'second'"]


def test_the_causes_of_a_group_are_what_is_in_it() -> None:
    group = ExceptionGroup("outer", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")]), OSError("c")])
    assert describe(group)["causes"] == [
        "ValueError: a", "ExceptionGroup: inner (1 sub-exception)", "OSError: c", "KeyError: 'b'",
    ]  # fmt: skip


def test_the_message_of_a_group_tells_what_is_in_it() -> None:
    group = ExceptionGroup("two", [ValueError("a"), OSError("c")])
    assert describe(group)["message"] == "two (2 sub-exceptions): ValueError: a; OSError: c"
    assert len(describe(ExceptionGroup("long", [ValueError("x" * 9_000)] * 9))["message"]) < 5_000


def test_names_of_causes_are_storable_and_bounded() -> None:
    error = ValueError("x")
    error.__cause__ = type("N" * 10_000, (Exception,), {"__module__": "\ud800\0"})("y")
    (cause,) = describe(error)["causes"]
    assert len(cause) < 400
    json.dumps(cause).encode()
    encode(describe(error))


async def test_a_traceback_begins_in_the_users_code() -> None:
    @zart_step("fails")
    async def fails() -> None:
        raise ValueError("here")

    with pytest.raises(StepFailed) as caught:
        await fails()
    assert caught.value.traceback_text.startswith(f'  File "{__file__}"')
    assert caught.value.traceback_text.count("  File ") == 1


def test_a_step_failure_that_a_body_raises_again_keeps_the_steps_traceback() -> None:
    record = execution_failure(StepFailed("d", step="s", type_name="E", traceback_text="  File ...", attempts=4))
    assert (record["kind"], record["step"], record["attempts"]) == ("step_failed", "s", 4)
    assert record["traceback"] == "  File ..."


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("two\nlines")) == "ValueError: two lines"


@pytest.mark.parametrize(
    "value", [HUGE, Broken(), "x" * 10_000, [1] * 10_000, {"a\n": "b"}, "a\nb\0\ud800", None], ids=junk_id
)
def test_any_value_is_shown_on_one_short_line(value: object) -> None:
    text = shown(value)
    assert len(text) < 300
    assert "\n" not in text
    text.encode()


def test_a_short_value_is_shown_as_it_is() -> None:
    assert [shown(value) for value in ("order-7", 5, None, ["a"])] == ["'order-7'", "5", "None", "['a']"]
