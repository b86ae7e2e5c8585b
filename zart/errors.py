"""Every error zart raises, in one tree.

    ZartError
    ├── InvalidArgument (ValueError)     a value the caller passed cannot be used
    ├── RegistrationError                a durable function or step cannot be registered
    │   ├── DuplicateTaskName
    │   └── StepNotRegistered
    ├── StepFailed                       a step ended in failure, as data
    │   ├── RetryExhausted               ... after every retry it was allowed
    │   ├── StepTimedOut                 ... because its time was up
    │   └── SerializationError           ... because a value cannot be kept as it is
    ├── BodyFailed                       what on_failure gets: the body raised something of its own
    ├── DeadlineExceeded                 ... the execution's deadline passed
    ├── RetriesExhausted                 ... the last of its retries failed too
    ├── NonRetryable                     raised by user code: do not retry this step
    ├── EventTimeout                     an awaited event did not come in time
    ├── DuplicateStepName                one name used for two operations of a run
    ├── StepDiverged                     the journal holds another operation under this name
    ├── NotInBody, NotInStep, NotInExecution    a call in a place where it has no meaning
    ├── TransactionMisused               a step ended the transaction that trx() gave it, or took two
    ├── ExecutionFailed                  what a waiter gets when the execution failed
    │   └── ExecutionCancelled
    ├── ExecutionNotFound, ExecutionAlreadyExists, WaitTimedOut
    └── DatabaseError                    the database cannot serve zart
        ├── DatabaseUnreachable
        ├── SchemaMissing
        └── SchemaMismatch

Every message says what happened, to which execution and step, and what to do about it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _reprs.maxlong = 100


def shown(value: object) -> str:
    """A value as messages show it: on one short line, whatever it is and whatever its own `__repr__` does."""
    try:
        return " ".join(_reprs.repr(value).split())
    except Exception as error:  # an int of too many digits, or code of the value's type
        return f"an object of type {type(value).__name__} ({type(error).__name__} when shown)"


class ZartError(Exception):
    """Root of every error that zart raises."""


class InvalidArgument(ZartError, ValueError):
    """A value passed to zart cannot be used; the message names the argument and the remedy."""


class RegistrationError(ZartError):
    """A durable function or a step cannot be registered; the message names it and the remedy."""


class DuplicateTaskName(RegistrationError):
    """Two functions were registered under one name."""


class StepNotRegistered(RegistrationError):
    """A scheduled step is known to no registry, so no worker could run it."""


class StepFailed(ZartError):
    """A step ended in failure. What it raised comes as data, the same live and replayed.

    Attributes:
        step: name of the step.
        type_name: qualified name of the exception the step raised.
        detail: text of that exception.
        traceback_text: its traceback, shortened, or "".
        attempts: how many times the step was tried.
        what: what bears the name: "step", or "durable function" when one was called outside an execution.
    """

    def __init__(
        self,
        detail: str,
        *,
        step: str = "",
        type_name: str = "",
        traceback_text: str = "",
        attempts: int = 1,
        what: str = "step",
    ) -> None:
        self.step, self.type_name, self.detail = step, type_name, detail
        self.traceback_text, self.attempts, self.what = traceback_text, attempts, what
        super().__init__(self._text())

    def _text(self) -> str:
        why = f"{self.type_name}: {self.detail}" if self.type_name else self.detail
        return f"{self.what} {self.step!r} failed: {why}" if self.step else why


class RetryExhausted(StepFailed):
    """A step failed on its first try and on every retry it was allowed.

    `last_error` is the text of the last try's error; `attempts` counts all tries.
    """

    @property
    def last_error(self) -> str:
        return f"{self.type_name}: {self.detail}"

    def _text(self) -> str:
        return f"step {self.step!r} failed {self.attempts} times, no retry is left; last: {self.last_error}"


class StepTimedOut(StepFailed):
    """A step did not end within its timeout. Final: it is never retried."""

    def _text(self) -> str:
        return f"step {self.step!r} timed out: {self.detail}"


class ChildFailed(StepFailed):
    """A child execution ended without a result.

    `step` is the child's name, `type_name` and `detail` tell what ended it.

    Attributes:
        kind: how it ended: "body_failed", "step_failed", "deadline_exceeded", "cancelled", "quarantined", ...
    """

    def __init__(self, detail: str, *, kind: str = "body_failed", **rest: Any) -> None:
        self.kind = kind
        super().__init__(detail, **rest)


class SerializationError(StepFailed, ValueError):
    """A value cannot be stored so that it comes back as it is, or what is stored does not fit its type.

    Attributes:
        path: where in the value, as `$.items[3].price`.
        reason: why, and what to do.
        where: which value, as "input of execution 'order-7'"; "" when only `step` tells, or nobody has said.
        misfit: it is stored and does not fit its type; what to do depends on the place: `named` and `located` say it.
    """

    def __init__(
        self, reason: str, *, path: str = "$", step: str = "", where: str = "", misfit: bool = False, **rest: Any
    ) -> None:
        self.path, self.reason, self.where, self.misfit = path, reason, where, misfit
        rest.setdefault("type_name", "")
        super().__init__(f"{path}: {reason}", step=step, **rest)

    def _text(self) -> str:
        where = self.where or (f"result of step {self.step!r}" if self.step else "value")
        return f"{where} at {self.path}: {self.reason}"

    def named(self, step: str) -> SerializationError:
        """The same error, naming the step whose value was refused."""
        remedy = "let the type accept what is stored (give added fields a default), or give the step another name"
        return SerializationError(self._advised(remedy), path=self.path, step=step, attempts=self.attempts)

    def located(self, where: str, *, remedy: str = "let its type accept what is stored") -> SerializationError:
        """The same error, naming the value that was refused.

        Args:
            where: which value, as "input of execution 'order-7'".
            remedy: what to do there about a stored value that does not fit its type. Other reasons bring their own.
        """
        return SerializationError(self._advised(remedy), path=self.path, where=where, attempts=self.attempts)

    def _advised(self, remedy: str) -> str:
        return f"{self.reason}; {remedy}" if self.misfit else self.reason


class BodyFailed(ZartError):
    """What `on_failure` gets when the body raised another exception than a StepFailed, declared ones included.

    Attributes:
        type_name: qualified name of the exception.
        detail: its text.
        traceback_text: its traceback, shortened, or "".
    """

    def __init__(self, detail: str, *, type_name: str = "", traceback_text: str = "") -> None:
        self.type_name, self.detail, self.traceback_text = type_name, detail, traceback_text
        super().__init__(f"the body failed: {type_name}: {detail}" if type_name else f"the body failed: {detail}")


class DeadlineExceeded(ZartError):
    """What `on_failure` gets when the execution's `timeout` was over before its body."""


class RetriesExhausted(ZartError):
    """What `on_failure` gets when the execution failed on its first pass and on every retry it was allowed.

    Attributes:
        attempts: how many passes there were.
        last: how the last one failed.
    """

    def __init__(self, last: StepFailed | BodyFailed, attempts: int) -> None:
        self.last, self.attempts = last, attempts
        super().__init__(f"the execution failed {attempts} times, no retry is left; last: {last}")


Failure: TypeAlias = StepFailed | BodyFailed | DeadlineExceeded | RetriesExhausted
"""What `on_failure` gets: why the execution failed. The same on every pass, as it is made from what was stored."""


class NonRetryable(ZartError):
    """Raise it (or a subclass) in a step to fail at once, whatever its `retry` says."""


class EventTimeout(ZartError):
    """An awaited event was not offered in time."""


class DuplicateStepName(ZartError):
    """One name was used for two operations of a run; names are the identity of checkpoints."""


class StepDiverged(ZartError):
    """The journal holds another kind of operation, or another name, under this key."""


class NotInBody(ZartError):
    """A call that belongs in the body of a durable function was made inside a step, or in a thread."""


class NotInStep(ZartError):
    """A call that belongs in an async step was made elsewhere in an execution."""


class TransactionMisused(ZartError):
    """A step asked for a second transaction in one try, or has ended or spoilt the one that `trx()` gave it."""


class NotInExecution(ZartError):
    """A call that needs a running execution was made outside one."""


class ExecutionFailed(ZartError):
    """The awaited execution ended without a result.

    Attributes:
        execution_id, task_name: which one.
        error: the stored error record (`type`, `message`, `step`, ...), or None.
    """

    def __init__(self, execution_id: str, task_name: str = "", error: Any = None, text: str = "") -> None:
        self.execution_id, self.task_name, self.error = execution_id, task_name, error
        super().__init__(text or f"execution {execution_id!r} ({task_name}) failed: {_summary(error)}")


class ExecutionCancelled(ExecutionFailed):
    """The awaited execution was cancelled."""

    def __init__(self, execution_id: str, task_name: str = "") -> None:
        super().__init__(execution_id, task_name, None, f"execution {execution_id!r} ({task_name}) was cancelled")


class ExecutionNotFound(ZartError):
    """No execution has this id."""

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id
        super().__init__(f"no execution has the id {execution_id!r}; `zart list` shows those that exist")


class ExecutionAlreadyExists(ZartError):
    """The id belongs to an execution of another durable function."""

    def __init__(self, execution_id: str, existing: str, wanted: str) -> None:
        self.execution_id, self.existing, self.wanted = execution_id, existing, wanted
        super().__init__(
            f"execution {execution_id!r} already exists as {existing!r}, so it cannot be started as {wanted!r};"
            " use another id"
        )


class WaitTimedOut(ZartError):
    """The execution was still going when the time to wait was up; it goes on.

    Attributes:
        execution_id, task_name: which one; the latter is "" when the database did not tell in time.
        seconds: how long it was waited for.
        status: what it was doing then, as "pending"; "" when the database did not tell in time.
    """

    def __init__(
        self, execution_id: str, seconds: float, *, task_name: str = "", status: str = "", taken_up: bool = True
    ) -> None:
        self.execution_id, self.seconds, self.task_name, self.status = execution_id, seconds, task_name, status
        super().__init__(f"execution {execution_id!r} {self._text(taken_up)}")

    def _text(self, taken_up: bool) -> str:
        match self.status:
            case "":
                return f"did not end within {self.seconds:g} s; it goes on, wait again"
            case "pending" if not taken_up:
                return (
                    f"is still pending after {self.seconds:g} s: no worker has taken it up;"
                    f" is one serving {self.task_name!r}?"
                )
            case "pending" | "running" | "waiting":
                return f"is still {self.status} after {self.seconds:g} s; it goes on, wait again"
            case _:
                return f"was {self.status} just after the {self.seconds:g} s were up; wait again for its result"


class DatabaseError(ZartError):
    """The database cannot serve zart; the message says why and what to do."""


class DatabaseUnreachable(DatabaseError):
    """No connection can be made."""


class SchemaMissing(DatabaseError):
    """The database has no zart schema, or an older one than this library needs."""


class SchemaMismatch(DatabaseError):
    """The database's zart schema is newer than this library knows."""


def _summary(error: Any) -> str:
    if isinstance(error, Mapping):
        record = cast("Mapping[str, Any]", error)
        return f"{record.get('type', 'error')}: {record.get('message', '')}"
    return "no error was recorded" if error is None else str(error)
