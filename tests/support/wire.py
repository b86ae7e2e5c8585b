"""A proxy that follows what clients say to PostgreSQL, statement by statement, and ends links between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from typing import TypeAlias

from tests.support.database import Database
from tests.support.proxy import Proxy


class Fate(enum.Enum):
    """What becomes of a link at one statement."""

    PASS = "passes"
    CUT_BEFORE = "cut before the server gets it"
    CUT_AFTER = "cut when the server has done it, before the client hears"
    SILENT = "silent from here on"


Fates: TypeAlias = Callable[[str], Fate]
"""Told the text of each statement that is executed, gives its fate."""


class Wire(Proxy):
    """As Proxy, but what happens to links is told for each execution of a statement, prepared or not.

    Attributes:
        statements: texts of all that were executed, in order.
    """

    def __init__(self, database: Database, fates: Fates) -> None:
        super().__init__(database)
        self._fates = fates
        self.statements: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent = asyncio.Event()
        if self._hole:
            silent.set()
        self._links[silent] = b""
        link = _Link(self, silent, reader, writer, *await self._connect_to_server())
        for pump in (link.from_client(), link.from_server()):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def fate_of(self, text: str) -> Fate:
        self.statements.append(text)
        fate = self._fates(text)
        self.cut += fate in (Fate.CUT_BEFORE, Fate.CUT_AFTER)
        self.silenced += fate is Fate.SILENT
        return fate


class _Link:
    """One client's connection. Its messages are read one by one."""

    def __init__(
        self,
        wire: Wire,
        silent: asyncio.Event,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._wire, self._silent, self._reader, self._writer = wire, silent, reader, writer
        self._server_reader, self._server_writer = server_reader, server_writer
        self._texts: dict[bytes, str] = {}
        self._deaf = False

    async def from_client(self) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                size = await self._reader.readexactly(4)  # the first message has no type
                first = size + await self._reader.readexactly(int.from_bytes(size) - 4)
                if not self._silent.is_set():
                    self._server_writer.write(first)
                while True:
                    await self._pass_on(await self._reader.readexactly(5))
        finally:
            self._server_writer.close()

    async def _pass_on(self, head: bytes) -> None:
        message = head + await self._reader.readexactly(int.from_bytes(head[1:]) - 4)
        text = self._executed(message)
        fate = Fate.PASS if text is None or self._silent.is_set() else self._wire.fate_of(text)
        if fate is Fate.CUT_BEFORE:
            self._writer.transport.abort()
            raise ConnectionAbortedError
        if fate is Fate.SILENT:
            self._silent.set()
        self._deaf = self._deaf or fate is Fate.CUT_AFTER
        if not self._silent.is_set():
            self._server_writer.write(message)

    def _executed(self, message: bytes) -> str | None:
        """The statement's text, of a message that has one executed."""
        match message[:1]:
            case b"P":
                name, text = message[5:].split(b"\0")[:2]
                self._texts[name] = text.decode()
                return None
            case b"B":
                return self._texts.get(message[5:].split(b"\0")[1], "")
            case b"Q":
                return message[5:].rstrip(b"\0").decode()
            case _:
                return None

    async def from_server(self) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await self._server_reader.read(65_536):
                    if self._deaf and data[-6:-1] == b"Z\0\0\0\5":  # it is done
                        self._writer.transport.abort()
                        return
                    if not self._deaf and not self._silent.is_set():
                        self._writer.write(data)
                if self._silent.is_set():
                    await asyncio.Event().wait()  # the other end never hears of it
        finally:
            self._writer.close()
