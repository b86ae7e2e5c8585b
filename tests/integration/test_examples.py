"""The examples run, and give what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from examples import web
from examples.onboarding import Account, CardDeclined, Signup, charge_card, onboarding
from tests.support.database import Database
from tests.support.eventually import eventually
from zart.errors import SchemaMissing
from zart.registry import load_registry

ROOT = Path(__file__).parents[2]


def test_the_onboarding_example_runs_from_start_to_end() -> None:
    done = subprocess.run(
        [sys.executable, "examples/onboarding.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "welcome, your plan is free" in done.stdout
    assert "provision-us     completed" in done.stdout


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
