"""Take on a customer: five steps, each kept in PostgreSQL as soon as it is done.

Serve it with a fleet of processes, from the directory above this one:

    zart-runner --app examples.onboarding --procs 2 --embedded ./db

or watch one execution from start to end, in one process and with a PostgreSQL of its own:

    python examples/onboarding.py
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zart
from zart import BusinessErr, Ok, ZartErr, zart_durable, zart_step
from zart.embedded import EmbeddedPostgres


@dataclass(frozen=True)
class Signup:
    """What the durable function is given. Inputs and results are typed, and stored as JSON."""

    email: str
    card: str
    regions: list[str]


@dataclass(frozen=True)
class Account:
    """What it gives."""

    customer: str
    plan: str
    workspaces: list[str]


class CardDeclined(Exception):
    """A decision of the bank, not a failure: `raises` declares it, so it is never retried and comes back as itself."""


@zart_step("create-customer", retry="exponential(5, 200ms)", timeout="30s")
async def create_customer(email: str) -> str:
    await asyncio.sleep(0.01)  # a call to another system
    return f"customer-of-{email.lower()}"


@zart_step("charge-card", retry="fixed(3, 1s)", raises=CardDeclined)
async def charge_card(customer: str, card: str) -> str:
    if card.endswith("0000"):
        raise CardDeclined(f"the bank declined the card of {customer}")
    return f"payment-of-{customer}"


@zart_step("provision-{region}", retry="exponential(5, 200ms)")
async def provision(customer: str, region: str) -> str:
    return f"{region}/{customer}"


@zart_step("send-welcome", retry="exponential(5, 1s)")
async def send_welcome(email: str, plan: str) -> None:
    print(f"to {email}: welcome, your plan is {plan}")


@zart_durable("onboarding", timeout="10m", max_retries=2)
async def onboarding(signup: Signup) -> Account:
    """Plain Python. After a crash it runs again from the top, and every finished step gives its kept result at once."""
    customer = await create_customer(signup.email)

    match await zart.outcome(charge_card(customer, signup.card)):
        case Ok(_):
            plan = "pro"
        case BusinessErr(CardDeclined()):
            plan = "free"
        case ZartErr(failure):
            raise failure

    workspaces = await asyncio.gather(*(provision(customer, region) for region in signup.regions))
    await send_welcome(signup.email, plan)
    return Account(customer, plan, workspaces)


async def main() -> None:
    """The same engine as in `zart-runner`, inside of a program's own event loop."""
    registry = zart.TaskRegistry()
    registry.register(onboarding)
    with EmbeddedPostgres() as postgres:
        async with zart.PostgresScheduler.connect(postgres.dsn) as scheduler:
            await scheduler.migrate()
            worker = zart.Worker(scheduler, registry)
            running = asyncio.create_task(worker.run())

            signup = Signup("Ada@example.com", "4000-0000-0000-0000", ["eu", "us"])
            account = await scheduler.start_and_wait_for(onboarding, "signup-ada", signup, timeout="30s")
            print(account)
            for step in await scheduler.history("signup-ada"):
                print(f"  {step.name:<16} {step.status:<10} {step.result}")

            worker.stop()
            await running


if __name__ == "__main__":
    asyncio.run(main())
