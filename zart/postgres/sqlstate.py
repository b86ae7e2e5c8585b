"""What a failed statement means for the one who sent it: whose fault it was, and whether anything was written."""

from __future__ import annotations

import enum

import asyncpg

from zart.errors import DatabaseUnreachable


class Fault(enum.Enum):
    """Why a statement failed, told apart by what to do next."""

    DATA = "data"
    """A value was refused. Nothing was written, and the same values will be refused again."""
    RETRY = "retry"
    """Others were in the way, or the server had no room. Nothing was written; the same statement may pass later."""
    LOST = "lost"
    """The connection is gone or of no use. Whether the statement was applied is unknown."""
    BUG = "bug"
    """The statement, the schema or the program is wrong. Nothing was written; sending it again will not help."""


_DATA_CLASSES = frozenset({"22", "23", "54"})
_RETRY_CLASSES = frozenset({"40", "53", "58"})
_RETRY_STATES = frozenset({"55P03", "57014"})  # lock_not_available, query_canceled
_LOST_CLASSES = frozenset({"08"})
_LOST_STATES = frozenset({"25006", "57P01", "57P02", "57P03", "57P04", "57P05"})  # a demoted server, a shutdown
_LOST_SEVERITIES = frozenset({"FATAL", "PANIC"})
_CLOSED = ("closed", "closing", "released back to the pool")


def classify(error: BaseException) -> Fault:
    """Tell what an error raised by asyncpg, or by `connect`, means, whatever the statement, COMMIT included.

    Example:
        >>> classify(asyncpg.DeadlockDetectedError("deadlock detected"))
        <Fault.RETRY: 'retry'>
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return Fault.RETRY
    if isinstance(error, asyncpg.PostgresError):
        return _of_the_server(error)
    if isinstance(error, asyncpg.InterfaceError):
        return _of_the_driver(error)
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return Fault.DATA
    if isinstance(error, OSError | EOFError | asyncpg.InternalClientError | DatabaseUnreachable):
        return Fault.LOST  # TimeoutError is an OSError
    return Fault.BUG


def is_silence(error: BaseException) -> bool:
    """Whether a lost connection was given up here: nothing came from its server in time, or it is read-only now.

    Other connections to that server are of no use either, though nothing has closed them.
    """
    return isinstance(error, TimeoutError | DatabaseUnreachable | asyncpg.ReadOnlySQLTransactionError)


def _of_the_server(error: asyncpg.PostgresError) -> Fault:
    state = error.sqlstate or ""
    severity = error.severity_en or error.severity
    if severity in _LOST_SEVERITIES or state in _LOST_STATES or state[:2] in _LOST_CLASSES:
        return Fault.LOST
    if state[:2] in _DATA_CLASSES:
        return Fault.DATA
    if state[:2] in _RETRY_CLASSES or state in _RETRY_STATES:
        return Fault.RETRY
    return Fault.BUG


def _of_the_driver(error: asyncpg.InterfaceError) -> Fault:
    if isinstance(error, ValueError) and not isinstance(error, asyncpg.ClientConfigurationError):
        return Fault.DATA  # an argument that cannot be encoded; asyncpg does not export its class
    return Fault.LOST if any(word in str(error) for word in _CLOSED) else Fault.BUG
