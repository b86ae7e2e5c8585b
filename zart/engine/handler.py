"""Failure handlers: what runs once a body has failed for good, in turns of its own.

the body fails     its turn ends with the verb HANDLE: one tick journals the failure, frees the claim, and leaves word
                   that the body's children are to end
the next claim     finds the failure in the history, and runs the handler in place of the body; its names in the journal
                   begin with FAILURE_PREFIX, and no deadline or retry of the execution applies to it
the handler ends   a value is the execution's result; without one, or when the handler fails too, the first failure
                   stands

Rejected: running it under the body's claim. What the body left behind (tasks that swallow their cancellation, rows and
children on their way to the database) would have to be told apart from what the handler does; another epoch does that.
"""

from __future__ import annotations

from typing import Any

from zart.codec import step_key
from zart.engine import failure
from zart.engine.replay import History
from zart.errors import (
    BodyFailed,
    ChildFailed,
    DeadlineExceeded,
    Failure,
    RetriesExhausted,
    RetryExhausted,
    SerializationError,
    StepFailed,
    StepTimedOut,
)
from zart.model import KeySpace

FAILURE_NAME = "on_failure"
FAILURE_KEY = step_key(KeySpace.FAILURE, FAILURE_NAME)
"""Of the failure's row in the journal. zart_tick_1 has it as a number."""

_MET = "met"
"""The part of a record that only the handler needs: which StepFailed the body met, and how many passes there were."""

_KINDS: dict[str, type[StepFailed]] = {"exhausted": RetryExhausted, "timed_out": StepTimedOut, "failed": StepFailed}


def journaled_failure(history: History) -> failure.Record | None:
    """The failure that the handler is to run after, or None while the body has not failed."""
    row = history.checkpoints.get(FAILURE_KEY)
    return None if row is None else failure.decode(row.error or "{}")


def for_handler(record: failure.Record, error: BaseException, passes: int | None) -> failure.Record:
    """The record with what it takes to make what `on_failure` gets.

    Args:
        record: of the body's failure.
        error: what the body raised.
        passes: how many there were, if every retry is used up.
    """
    met: failure.Record = {} if passes is None else {"passes": passes}
    if isinstance(error, StepFailed):
        met |= _met(error)
    return {**record, _MET: met}


def final_record(first: failure.Record, second: failure.Record | None = None) -> failure.Record:
    """How an execution ends whose handler gave no result; `second` is how the handler failed, if it did."""
    record = {key: value for key, value in first.items() if key != _MET}
    return record if second is None else {**record, "on_failure": second}


def rebuild_failure(record: failure.Record) -> Failure:
    """What `on_failure` gets, from the journaled record."""
    met: failure.Record = record.get(_MET, {})
    if record["kind"] == "deadline_exceeded":
        return DeadlineExceeded(record["message"])
    if record["kind"] == "refused":
        return SerializationError(record["message"], step=record.get("step") or "")
    last: StepFailed | BodyFailed
    if "kind" in met:
        last = _rebuild_met(record, met)
    else:
        last = BodyFailed(record["message"], type_name=record["type"], traceback_text=record.get("traceback", ""))
    return RetriesExhausted(last, met["passes"]) if "passes" in met else last


def _met(error: StepFailed) -> failure.Record:
    """Which StepFailed it is. Its attributes may be missing, or anything: a user's own subclass need not set them."""

    def text(name: str) -> str:
        return failure.storable(str(getattr(error, name, "")), failure.MAX_MESSAGE_CHARACTERS)

    met: failure.Record = {"type": text("type_name"), "detail": text("detail"), "what": text("what") or "step"}
    match error:
        case SerializationError():
            return {
                **met,
                "kind": "serialization",
                "detail": text("reason"),
                "path": text("path"),
                "where": text("where"),
            }
        case ChildFailed():
            return {**met, "kind": "child", "child_kind": text("kind")}
        case RetryExhausted():
            return {**met, "kind": "exhausted"}
        case StepTimedOut():
            return {**met, "kind": "timed_out"}
        case _:
            return {**met, "kind": "failed"}


def _rebuild_met(record: failure.Record, met: failure.Record) -> StepFailed:
    if met["kind"] == "serialization":
        return SerializationError(
            met["detail"], path=met["path"], step=record["step"], where=met["where"], attempts=record["attempts"]
        )
    details: dict[str, Any] = {
        "step": record["step"],
        "type_name": met["type"],
        "traceback_text": record.get("traceback", ""),
        "attempts": record["attempts"],
        "what": met["what"],
    }
    if met["kind"] == "child":
        return ChildFailed(met["detail"], kind=met["child_kind"], **details)
    return _KINDS[met["kind"]](met["detail"], **details)
