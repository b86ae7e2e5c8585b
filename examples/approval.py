"""An expense that somebody has to approve, and somebody else when nobody does: events, timeouts, no process held.

From the directory above this one, serve it:

    zart-runner --app examples.approval --procs 2 --embedded ./db

and in a second shell hand an expense in, look what it waits for, and decide:

    zart start expense --id trip-7 --data '{"employee": "ada", "amount": 120}' --embedded ./db
    zart history trip-7 --embedded ./db
    zart event trip-7 approved --data '{"by": "grace"}' --embedded ./db
    zart wait trip-7 --embedded ./db

With `"decide_within": "10s"` in the data, wait that long instead: the director is asked, and decides with the event
`approved-by-director`. `--data '{"by": "grace", "yes": false}'` refuses.
"""

from __future__ import annotations

from dataclasses import dataclass

import zart
from zart import EventTimeout, zart_durable, zart_step


@dataclass(frozen=True)
class Expense:
    """What is handed in. A default makes a field optional in `--data`."""

    employee: str
    amount: int
    decide_within: str = "3d"


@dataclass(frozen=True)
class Decision:
    """The payload of the event."""

    by: str
    yes: bool = True


@zart_step("ask-{approver}", retry="exponential(5, 1s)")
async def ask(approver: str, expense: Expense, event: str) -> None:
    execution_id = zart.context().execution_id
    print(f"to the {approver}: may {expense.employee} have {expense.amount}? zart event {execution_id} {event} ...")


@zart_step("pay", retry="exponential(5, 1s)")
async def pay(employee: str, amount: int) -> str:
    return f"{amount} paid to {employee}"


async def decided(approver: str, expense: Expense, event: str) -> Decision:
    """A part of a body is a plain function: only its steps and waits have names."""
    await ask(approver, expense, event)
    return await zart.wait_for_event(event, Decision, timeout=expense.decide_within)


@zart_durable("expense")
async def approve_expense(expense: Expense) -> str:
    """While it waits it is one row in the database, for seconds or for months."""
    try:
        decision = await decided("manager", expense, "approved")
    except EventTimeout:
        # An event's name is waited for once: whoever sends `approved` now is told that it is too late.
        try:
            decision = await decided("director", expense, "approved-by-director")
        except EventTimeout:
            return "nobody has decided"
    if not decision.yes:
        return f"refused by {decision.by}"
    return f"{await pay(expense.employee, expense.amount)}, approved by {decision.by}"
