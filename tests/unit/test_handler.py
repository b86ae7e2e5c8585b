"""What a failure handler gets, made from what was stored."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

import zart
from zart import flow
from zart.engine.failure import decode, encode, execution_failure
from zart.engine.handler import FAILURE_KEY, final_record, for_handler, rebuild_failure
from zart.errors import (
    BodyFailed,
    ChildFailed,
    DeadlineExceeded,
    InvalidArgument,
    RegistrationError,
    RetriesExhausted,
    RetryExhausted,
    SerializationError,
    StepFailed,
    StepTimedOut,
)
from zart.steps import ZartStep, zart_step
from zart.store.statements import statement


def stored_and_rebuilt(error: BaseException, passes: int | None = None) -> Any:
    record = for_handler(execution_failure(error), error, passes)
    return rebuild_failure(decode(encode(record).decode()))


@pytest.mark.parametrize(
    "error",
    [
        StepFailed("no", step="s", type_name="E", traceback_text="  File x", attempts=2),
        StepFailed("no", step="d", type_name="E", what="durable function"),
        RetryExhausted("no", step="s", type_name="E", traceback_text="  File x", attempts=4),
        StepTimedOut("3 s have passed", step="s", type_name="TimeoutError"),
        SerializationError("it is NaN", path="$.a[3]", step="s", attempts=2),
        SerializationError("it is NaN", path="$", where="result of execution 'a'"),
        ChildFailed("no", step="c", type_name="E", what="child execution", kind="deadline_exceeded"),
    ],
)
def test_a_step_failure_comes_back_as_it_was(error: StepFailed) -> None:
    rebuilt = stored_and_rebuilt(error)
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    assert {**vars(rebuilt), "misfit": False} == {**vars(error), "misfit": False}


def test_other_exceptions_come_as_data() -> None:
    try:
        raise KeyError("k")
    except KeyError as error:
        failed = stored_and_rebuilt(error)
    assert type(failed) is BodyFailed
    assert (failed.type_name, failed.detail) == ("KeyError", "'k'")
    assert 'raise KeyError("k")' in failed.traceback_text
    assert str(failed) == "the body failed: KeyError: 'k'"


def test_retries_that_are_used_up_hold_the_last_failure() -> None:
    exhausted = stored_and_rebuilt(StepFailed("no", step="s", type_name="E"), passes=3)
    assert type(exhausted) is RetriesExhausted
    assert (exhausted.attempts, type(exhausted.last)) == (3, StepFailed)
    assert str(exhausted) == "the execution failed 3 times, no retry is left; last: step 's' failed: E: no"
    assert type(stored_and_rebuilt(ValueError("no"), passes=2).last) is BodyFailed


def test_a_deadline_and_a_refused_value_have_their_own() -> None:
    assert type(rebuild_failure({"kind": "deadline_exceeded", "message": "late"})) is DeadlineExceeded
    refused = rebuild_failure({"kind": "refused", "message": "too odd", "step": "s"})
    assert type(refused) is SerializationError
    assert (refused.step, refused.reason) == ("s", "too odd")
    assert type(rebuild_failure({"kind": "refused", "message": "too odd", "step": None})) is SerializationError


def test_a_subclass_of_the_users_that_sets_nothing_is_kept_too() -> None:
    class Own(StepFailed):
        def __init__(self) -> None:
            Exception.__init__(self, "own")

        def __str__(self) -> str:
            return "own"

    rebuilt = stored_and_rebuilt(Own())
    assert type(rebuilt) is StepFailed
    assert rebuilt.what == "step"


def test_what_only_the_handler_needs_is_no_part_of_the_final_record() -> None:
    error = StepFailed("no", step="s", type_name="E")
    first = execution_failure(error)
    assert final_record(for_handler(first, error, 3)) == first
    assert final_record(for_handler(first, error, 3), {"kind": "body_failed"}) == {
        **first,
        "on_failure": {"kind": "body_failed"},
    }


def test_the_tick_keeps_failures_under_the_key_that_they_are_looked_up_by() -> None:
    assert f" {FAILURE_KEY}, " in statement("zart_tick_1", "zart")


# -- names that are kept for handlers


@zart_step("note-{text}")
async def note(text: str) -> None: ...


@zart_step("{text}/note")
async def filled(text: str) -> None: ...


class Odd(ZartStep[None]):
    def step_name(self) -> str:
        return "on_failure/odd"

    async def run(self) -> None: ...


def test_no_step_can_have_a_name_of_theirs() -> None:
    with pytest.raises(RegistrationError, match="must not begin with 'on_failure/', got 'on_failure/note'"):
        zart_step("on_failure/note")(note.function)
    call = note("a")
    with pytest.raises(InvalidArgument, match="must not begin with 'on_failure/'"):
        _named = call.named("on_failure/note")
    call.close()
    for made in (filled("on_failure"), Odd()):
        with pytest.raises(InvalidArgument, match="must not begin with 'on_failure/'"):
            made.resolved_name()
        made.close()


async def test_no_sleep_or_kept_value_can_have_a_name_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "require_scope", Mock())
    for call in (
        zart.sleep("on_failure/x", 1),
        zart.capture("on_failure/x", int),
        zart.now("on_failure/x"),
    ):
        with pytest.raises(InvalidArgument, match="must not begin with 'on_failure/'"):
            await call
