"""The examples run, and give what they say."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
import uvicorn

from examples import errors, orders, web
from examples.approval import Expense
from examples.onboarding import Account, CardDeclined, Signup, charge_card, onboarding
from examples.polling import Order
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.shell import ROOT, output_of, running
from zart.errors import SchemaMissing
from zart.registry import load_registry
from zart.testing import crash_everywhere


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


def test_the_example_of_transfers_runs_from_start_to_end() -> None:
    *told, balances = run("transfer").splitlines()
    assert sorted(line.partition(":")[0] for line in told) == ["to ada", "to ada", "to bob"]
    assert balances == "{'ada': 50, 'bob': 100}"


def test_the_example_of_orders_runs_from_start_to_end() -> None:
    fine, rare, nowhere = run("orders").splitlines()
    assert fine == "2 tea, 1 cup to 1 Main St, 7.50 paid"
    assert rare == ("called off, no unicorn left: tea is free again, unicorn is free again, nothing is paid for rare")
    assert nowhere == "called off, could not ship: tea is free again, nothing is paid for nowhere"


async def test_an_order_is_taken_back_wherever_its_worker_dies() -> None:
    called_off = await crash_everywhere(orders.fulfil, orders.ORDERS["nowhere"])
    assert called_off == "called off, could not ship: tea is free again, nothing is paid for test"


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ("approval", "120 paid to ada, approved by grace"),
        ("polling", "check-3"),
        ("errors", "1 tea to 1 Main St, no gift"),
        ("orders", "on_failure/release-tea"),
        ("transfer", '{"ada": 30, "bob": 70}'),
        ("health", "check-down.example"),
    ],
)
@pytest.mark.usefixtures("here")
async def test_the_commands_of_a_docstring_work_one_after_the_other(example: str, told: str) -> None:
    async with served(example):
        printed = [await output_of(line) for line in commands(example) if line.startswith("zart ")]
    assert told in printed[-1]


@pytest.mark.usefixtures("here")
async def test_a_round_of_checks_tells_the_healthy_from_the_others() -> None:
    async with served("health"):
        addresses = ["ok.example", "sick.example", "down.example", *(f"host-{number}" for number in range(50))]
        await ended("check-all", "round", addresses)
        report = json.loads(await output_of("zart status round --json"))["output"]
        children = json.loads(await output_of("zart list --parent round --json"))
    assert report["healthy"] == ["ok.example", *(f"host-{number}" for number in range(50))]
    assert report["unhealthy"] == {"sick.example": "503 Service Unavailable"}
    assert report["unknown"] == {"down.example": "down.example refuses connections"}
    assert len(children["items"]) == len(addresses)


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


@pytest_asyncio.fixture
async def client(here: Database) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Of the web example, served by a real server on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(web.app, port=0, log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started or serving.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as made:
        yield made
    server.should_exit = True
    await serving


SIGNUP = {"email": "ada@example.com", "card": "4242", "regions": ["eu"]}
ACCOUNT = {"customer": "customer-of-ada@example.com", "plan": "pro", "workspaces": ["eu/customer-of-ada@example.com"]}


async def test_a_request_gets_the_result_of_its_execution(
    client: httpx.AsyncClient, connection: asyncpg.Connection
) -> None:
    answers = [await client.put("/signups/ada", params={"wait": 30}, json=SIGNUP) for _ in range(2)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, ACCOUNT)] * 2
    assert await connection.fetchval("select count(*) from signups") == 1
    assert await connection.fetchval("select count(*) from zart.zart_executions") == 1


async def test_a_request_that_waits_no_longer_is_told_where_the_result_will_be(
    client: httpx.AsyncClient, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        await connection.execute("lock table zart.zart_tasks in share row exclusive mode")  # no step can be kept
        answer = await client.put("/signups/ada", params={"wait": 0.1}, json=SIGNUP)
        assert answer.status_code == 202
        assert answer.json()["status"] in ("pending", "running")
        said = await client.get(answer.headers["Location"])
        assert (said.status_code, said.json()["account"]) == (200, None)

    async def account() -> object:
        return (await client.get(answer.headers["Location"])).json()["account"]

    assert await eventually(account) == ACCOUNT


async def test_a_request_whose_row_is_refused_starts_nothing(
    client: httpx.AsyncClient, connection: asyncpg.Connection
) -> None:
    await connection.execute("alter table signups add check (email <> 'ada@example.com')")
    assert (await client.put("/signups/ada", json=SIGNUP)).status_code == 500
    assert (await client.get("/signups/ada")).status_code == 404
    assert await connection.fetchval("select count(*) from zart.zart_executions") == 0
