"""The examples run, and give what they say."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import httpx
import pytest

from examples import errors, web
from examples.approval import Expense
from examples.onboarding import Account, CardDeclined, Signup, charge_card, onboarding
from examples.polling import Order
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.shell import ROOT, output_of, running
from zart.errors import SchemaMissing
from zart.registry import load_registry


def run(example: str) -> str:
    """What an example prints when it is run as a program."""
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def commands(example: str) -> list[str]:
    """The command lines in the docstring of an example, without the database that they name."""
    text = ast.get_docstring(ast.parse((ROOT / "examples" / f"{example}.py").read_text())) or ""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    zart")]
    return [line.removesuffix(" --embedded ./db") for line in lines]


@asynccontextmanager
async def served(example: str) -> AsyncGenerator[None, None]:
    """A runner serves an example, begun as its docstring says, on the database in DATABASE_URL."""
    line = next(line for line in commands(example) if line.startswith("zart-runner "))
    async with running(line):
        yield


async def ended(name: str, execution_id: str, data: Any, code: int = 0) -> str:
    """Start an execution by hand and wait for it: its output as JSON text, or what `zart wait` says of its failure."""
    await output_of(f"zart start {name} --id {execution_id} --data '{json.dumps(data)}'")
    return await output_of(f"zart wait {execution_id} --timeout 30s", code=code)


@pytest.fixture
def here(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The test's database, for commands that name none."""
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    return database


def test_the_onboarding_example_runs_from_start_to_end() -> None:
    printed = run("onboarding")
    assert "welcome, your plan is free" in printed
    assert "provision-us     completed" in printed


def test_the_example_of_errors_runs_from_start_to_end() -> None:
    fine, too_many, declined, refunded, nowhere = run("errors").splitlines()
    assert fine == "2 tea to 1 Main St, no gift"
    assert too_many == "10 tea to 1 Main St, no gift"
    assert declined == "not paid: card 0000"
    assert refunded == "refunded: payment for 1"
    assert "step 'ship' failed: zart.errors.NonRetryable: there is no street to ship to" in nowhere


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ("approval", "120 paid to ada, approved by grace"),
        ("polling", "check-3"),
        ("errors", "1 tea to 1 Main St, no gift"),
    ],
)
@pytest.mark.usefixtures("here")
async def test_the_commands_of_a_docstring_work_one_after_the_other(example: str, told: str) -> None:
    async with served(example):
        printed = [await output_of(line) for line in commands(example) if line.startswith("zart ")]
    assert told in printed[-1]


@pytest.mark.usefixtures("here")
async def test_an_expense_that_the_manager_leaves_lying_goes_to_the_director() -> None:
    async with served("approval"):
        expense = asdict(Expense("ada", 120, decide_within="1s"))
        await output_of(f"zart start expense --id trip --data '{json.dumps(expense)}'")
        await output_of('zart event trip approved-by-director --data \'{"by": "joan", "yes": false}\'')
        assert "refused by joan" in await output_of("zart wait trip --timeout 30s")
        assert "ask-director" in await output_of("zart history trip")


@pytest.mark.usefixtures("here")
async def test_an_expense_that_nobody_decides_on_ends_so() -> None:
    async with served("approval"):
        assert "nobody has decided" in await ended("expense", "trip", asdict(Expense("ada", 120, decide_within="0s")))


@pytest.mark.usefixtures("here")
async def test_the_polling_loop_gives_up_after_so_many_checks() -> None:
    async with served("polling"):
        order = asdict(Order("sarsaparilla", every="10ms", most_checks=4))
        said = await ended("report", "report", order, code=1)
        assert "was not done after 4 checks" in said
        history = await output_of("zart history report")
    assert "check-4" in history
    assert "check-5" not in history


async def test_what_is_out_of_stock_keeps_its_attributes() -> None:
    with pytest.raises(errors.OutOfStock) as caught:
        await errors.reserve("tea", 99)
    assert caught.value.left == 10


def test_zart_runner_can_serve_it() -> None:
    assert set(load_registry("examples.onboarding").durables) == {"onboarding"}


async def test_its_body_can_be_tried_as_a_plain_function() -> None:
    account = await onboarding(Signup("Ada@example.com", "4242", ["eu"]))
    assert account == Account("customer-of-ada@example.com", "pro", ["eu/customer-of-ada@example.com"])


async def test_a_declined_card_comes_back_as_itself() -> None:
    with pytest.raises(CardDeclined, match="declined the card"):
        await charge_card("someone", "0000")


async def test_the_web_example_does_not_start_without_the_schema(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database.dsn)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with web.app.router.lifespan_context(web.app):
            pytest.fail("the service has started")
    missing, others = caught.value.split(SchemaMissing)
    assert missing is not None
    assert others is None


async def test_the_web_example_takes_signups_and_onboards_each_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    signup = {"email": "ada@example.com", "card": "4242", "regions": ["eu"]}
    transport = httpx.ASGITransport(web.app)
    async with (
        web.app.router.lifespan_context(web.app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        answers = [await client.put("/signups/ada", json=signup) for _ in range(2)]
        assert [answer.json() for answer in answers] == [{"created": True}, {"created": False}]

        async def account() -> object:
            return (await client.get("/signups/ada")).json()["account"]

        found = await eventually(account)
        assert found == {
            "customer": "customer-of-ada@example.com",
            "plan": "pro",
            "workspaces": ["eu/customer-of-ada@example.com"],
        }
        assert (await client.get("/signups/nobody")).status_code == 404
