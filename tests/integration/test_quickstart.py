"""The quickstart, as a user goes through it, with a database of the test's in place of the embedded one."""

from __future__ import annotations

from asyncio.subprocess import Process
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.pages import begins_as_shown, blocks_of
from tests.support.shell import ROOT, kill, output_of, running

BLOCKS = blocks_of(ROOT / "docs" / "quickstart.md")
VERSIONS = [block.text for block in BLOCKS if block.file == "shop.py"]
TYPED = [one for block in BLOCKS for one in block.commands() if one[0].endswith(" --embedded ./db")]


@dataclass(frozen=True, slots=True)
class User:
    """Types the page's commands."""

    database: Database
    directory: Path

    @property
    def _options(self) -> dict[str, str]:
        # What is printed must be out when the process is killed.
        return {"DATABASE_URL": self.database.dsn, "PYTHONUNBUFFERED": "1"}

    def writes(self, shop: str) -> None:
        (self.directory / "shop.py").write_text(shop)

    def serves(self) -> AbstractAsyncContextManager[Process]:
        """Runs the page's runner, with a shorter lease."""
        line = next(line for line, _ in TYPED if line.startswith("zart-runner "))
        return running(_here(line) + " --lease-timeout 1s", cwd=self.directory, environment=self._options)

    async def types(self, line: str, shown: list[str]) -> str:
        """What a command prints: what the page shows, which is an error if it begins with `zart:`."""
        code = 1 if any(text.startswith("zart: ") for text in shown) else 0
        printed = await output_of(_here(line), cwd=self.directory, environment=self._options, code=code)
        assert begins_as_shown(printed, shown), f"{line}: {printed}"
        return printed

    async def sees(self, name: str) -> None:
        """Returns when the journal has this name."""
        connection = await self.database.connect()
        await eventually(lambda: connection.fetchval("select count(*) from zart.zart_tasks where name = $1", name))
        await connection.close()


def _here(line: str) -> str:
    return line.removesuffix(" --embedded ./db")


def _about(execution_id: str) -> list[tuple[str, list[str]]]:
    return [one for one in TYPED if execution_id in one[0]]


@pytest.fixture
def user(database: Database, tmp_path: Path) -> User:
    return User(database, tmp_path)


async def test_the_first_workflow_survives_kill_9(user: User) -> None:
    start, look, wait, look_again = _about("order-7")
    assert "asyncio.sleep(20)" in VERSIONS[0]
    user.writes(VERSIONS[0].replace("asyncio.sleep(20)", "asyncio.sleep(3)"))
    async with user.serves() as runner:
        await user.types(*start)
        await user.sees("reserve")
        printed = await kill(runner)
    assert "ship" not in await user.types(*look)
    async with user.serves() as runner:
        assert "parcel-of-reservation-of-seven" in await user.types(*wait)
        assert "ship" in await user.types(*look_again)
        printed += await kill(runner)
    assert printed.count("reserving seven") == 1


async def test_the_second_workflow_sleeps_and_gets_its_event(user: User) -> None:
    *before, wait, late = _about("order-8")
    user.writes(VERSIONS[1])
    async with user.serves():
        for command in before:
            await user.types(*command)
        assert "parcel-of-eight: it did" in await user.types(*wait)
        await user.types(*late)
