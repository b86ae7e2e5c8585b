"""Pages of the documentation, and the code in them.

The Python of a page is one program, block by block. A block right under a line like "`shop.py`:" is that file instead.
A block that awaits at its top level finds `scheduler` and `pool` (of asyncpg) on a database, and a worker that serves
the durable functions of the blocks before it; so does each `$ zart ...` line of a console, unless it brings an embedded
PostgreSQL. What such a line prints begins with what the page shows under it. SQL is run on the same database.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import asyncpg

import zart
from tests.support.database import Database
from tests.support.shell import ROOT, output_of

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`(\w+\.py)`[^\n`]*:\n+\Z")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, the line it begins at, and the file it is, if it is one."""

    language: str
    text: str
    line: int
    file: str | None

    def commands(self) -> list[tuple[str, list[str]]]:
        """The command lines of a console, each with the output shown under it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:].partition("  #")[0].strip(), []))
            elif line.strip() and found:
                found[-1][1].append(line.rstrip())
        return found


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    found: list[Block] = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        file = _FILE.search(before)
        found.append(Block(fence[1], fence[2], before.count("\n") + 2, file[1] if file else None))
    return found


class Program:
    """The code of a page being run, on a database of its own. Files are written to `directory`."""

    def __init__(self, page: Path, database: Database, directory: Path) -> None:
        self.page, self.database, self.directory = page, database, directory
        self.module = ModuleType(f"page_{page.stem}")
        self.files: dict[str, ModuleType] = {}
        sys.modules[self.module.__name__] = self.module

    async def run(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: a command does not end well, or prints something else than is shown.
        """
        if block.language == "python" and block.file:
            self._import(block.file, block.text)
        elif block.language == "python":
            await self._execute(block)
        elif block.language == "console":
            await self._type_in(block)
        elif block.language == "sql":
            await self._query(block)

    def close(self) -> None:
        """Forget the modules."""
        for module in (self.module, *self.files.values()):
            sys.modules.pop(module.__name__, None)

    def _import(self, file: str, text: str) -> None:
        (self.directory / file).write_text(text)
        name = file.removesuffix(".py")
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        self.files[name] = importlib.import_module(name)

    async def _execute(self, block: Block) -> None:
        code = compile(
            "\n" * (block.line - 1) + block.text, str(self.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )  # fmt: skip
        if not code.co_flags & inspect.CO_COROUTINE:
            exec(code, vars(self.module))
            return
        async with self._served() as scheduler, asyncpg.create_pool(self.database.dsn, min_size=0) as pool:
            vars(self.module).update(scheduler=scheduler, pool=pool)
            await eval(code, vars(self.module))

    async def _type_in(self, block: Block) -> None:
        lines = [(line, shown) for line, shown in block.commands() if _is_of_this_database(line)]
        if not lines:
            return
        async with self._served():
            for line, shown in lines:
                printed = await output_of(line, cwd=self.directory, environment={"DATABASE_URL": self.database.dsn})
                assert begins_as_shown(printed, shown), f"{line}: {printed}"

    async def _query(self, block: Block) -> None:
        connection = await self.database.connect()
        try:
            await connection.execute(block.text)
        finally:
            await connection.close()

    @asynccontextmanager
    async def _served(self) -> AsyncGenerator[zart.PostgresScheduler, None]:
        registry = zart.TaskRegistry()
        for module in (self.module, *self.files.values()):
            if any(map(_is_durable, vars(module).values())):
                registry.register_module(module)
        async with zart.PostgresScheduler.connect(self.database.dsn) as scheduler:
            if not registry.durables:
                yield scheduler
                return
            worker = zart.Worker(scheduler, registry)
            running = asyncio.create_task(worker.run())
            try:
                await worker.ready()
                async with asyncio.timeout(60):
                    yield scheduler
            finally:
                worker.stop()
                await running


def pages() -> list[Path]:
    """The pages of docs/, in order of their names."""
    return sorted((ROOT / "docs").glob("*.md"))


def begins_as_shown(printed: str, shown: list[str]) -> bool:
    """Whether a command printed the lines that a page shows, and then perhaps others."""
    return [line.rstrip() for line in printed.splitlines()][: len(shown)] == shown


def _is_of_this_database(line: str) -> bool:
    return line.startswith("zart ") and "--embedded" not in line


def _is_durable(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, zart.DurableExecution) and value is not zart.DurableExecution
    return isinstance(value, zart.DurableExecution)
