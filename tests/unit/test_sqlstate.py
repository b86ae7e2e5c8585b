"""Every error a statement can end with tells the sender what to do."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from zart.postgres.sqlstate import Fault, classify


def of_the_server(sqlstate: str, severity: str = "ERROR") -> asyncpg.PostgresError:
    """What asyncpg makes of a server's message with this SQLSTATE."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": "no"}
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(fields)
    return error


@pytest.mark.parametrize("sqlstate", ["22P02", "22008", "22021", "23505", "23514", "54000", "54001"])
def test_a_refused_value_is_the_fault_of_the_data(sqlstate: str) -> None:
    assert classify(of_the_server(sqlstate)) is Fault.DATA


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57014", "53100", "53200"])
def test_a_statement_that_others_stood_in_the_way_of_may_be_sent_again(sqlstate: str) -> None:
    assert classify(of_the_server(sqlstate)) is Fault.RETRY


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03", "08006", "08P01", "25006"])
def test_a_server_that_goes_away_takes_the_connection_with_it(sqlstate: str) -> None:
    assert classify(of_the_server(sqlstate)) is Fault.LOST


@pytest.mark.parametrize("sqlstate", ["25P03", "57014", "22P02", "XX000"])
def test_a_fatal_error_loses_the_connection_whatever_its_sqlstate(sqlstate: str) -> None:
    assert classify(of_the_server(sqlstate, "FATAL")) is Fault.LOST


@pytest.mark.parametrize("sqlstate", ["42P01", "42883", "42601", "0A000", "XX000", "99999", "P0001"])
def test_any_other_error_of_the_server_is_a_bug(sqlstate: str) -> None:
    assert classify(of_the_server(sqlstate)) is Fault.BUG


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        BrokenPipeError(),
        OSError("Multiple exceptions"),
        EOFError(),
        TimeoutError(),
        asyncio.IncompleteReadError(b"", 4),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InterfaceError("cannot perform operation: connection is closed"),
        asyncpg.InterfaceError("cannot call Connection.fetch(): connection has been released back to the pool"),
        asyncpg.InterfaceError("pool is closing"),
        asyncpg.InternalClientError("got result for unknown protocol state 7"),
    ],
    ids=repr,
)
def test_an_error_of_the_link_leaves_the_statement_undecided(error: Exception) -> None:
    assert classify(error) is Fault.LOST


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        asyncpg.InterfaceError("the server expects 1 argument for this query, 0 were passed"),
        TypeError("no"),
        ValueError("no"),
    ],
    ids=repr,
)
def test_a_wrong_call_of_the_driver_is_a_bug(error: Exception) -> None:
    assert classify(error) is Fault.BUG


def test_text_that_cannot_be_encoded_is_the_fault_of_the_data() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "\ud800".encode()
    assert classify(caught.value) is Fault.DATA


def test_a_plan_that_a_migration_outdated_may_be_sent_again() -> None:
    assert classify(asyncpg.InvalidCachedStatementError("cached statement plan is invalid")) is Fault.RETRY
