"""The demo's durable function: five steps whose results follow from the input, so that every one can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zart import zart_durable, zart_step


@dataclass(frozen=True, slots=True)
class Customer:
    """Who is taken on."""

    number: int
    email: str


@zart_step("verify-email")
async def verify_email(email: str) -> str:
    return email.strip().lower()


@zart_step("create-account", retry="exponential(3, 100ms)")
async def create_account(number: int, email: str) -> dict[str, Any]:
    return {"account": f"A-{number:07}", "email": email}


@zart_step("set-up-billing", retry="exponential(3, 100ms)")
async def set_up_billing(account: str) -> dict[str, Any]:
    return {"account": account, "cents": 100 * (int(account[2:]) % 97)}


@zart_step("provision-workspace")
async def provision_workspace(account: str) -> str:
    return f"workspace-of-{account}"


@zart_step("send-welcome")
async def send_welcome(email: str, workspace: str) -> str:
    return f"to {email}: welcome to {workspace}"


@zart_durable("demo-onboarding")
async def onboarding(customer: Customer) -> str:
    email = await verify_email(customer.email)
    account = await create_account(customer.number, email)
    await set_up_billing(account["account"])
    workspace = await provision_workspace(account["account"])
    await send_welcome(email, workspace)
    return workspace


def customer_of(number: int) -> Customer:
    """The customer of one execution."""
    return Customer(number, f" User{number}@Example.COM ")


def expected_steps(number: int) -> dict[str, Any]:
    """What the five checkpoints of one execution must hold, written down without running it."""
    account, email = f"A-{number:07}", f"user{number}@example.com"
    return {
        "verify-email": email,
        "create-account": {"account": account, "email": email},
        "set-up-billing": {"account": account, "cents": 100 * (number % 97)},
        "provision-workspace": f"workspace-of-{account}",
        "send-welcome": f"to {email}: welcome to workspace-of-{account}",
    }
