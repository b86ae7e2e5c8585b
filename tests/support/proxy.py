"""A TCP proxy before the test's server, whose links can fall silent (open, but nothing comes through), or be cut."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.support.database import Database

CHUNK = 65_536


class Proxy:
    """Use it in `async with`; `database` is the one given, reached through the proxy.

    Attributes:
        silenced: how many links have fallen silent.
        cut: how many were cut.
    """

    def __init__(self, database: Database) -> None:
        self._behind = database
        self._trigger = self._cutter = b""
        self._passed_on: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: dict[asyncio.Event, bytes] = {}  # what each client said first, by its silence
        self._hole = False
        self.silenced = self.cut = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        url = urlsplit(self._behind.dsn)._replace(netloc=f"postgres@{host}:{port}", query="sslmode=disable")
        self.database = dataclasses.replace(self._behind, dsn=url.geturl())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence_next(self, text: str) -> None:
        """The next link on which a client sends this text is silent from there on, the text included.

        A statement's text is sent once per connection: when it is prepared.
        """
        self._trigger = text.encode()

    def cut_next(self, text: str, passed_on: asyncio.Event | None) -> None:
        """The next client that sends this text loses its link at that moment.

        Args:
            passed_on: the server gets the text when this is set, its link being open until then; None: never.
        """
        self._cutter, self._passed_on = text.encode(), passed_on

    def open_hole(self) -> None:
        """All links fall silent, and those that clients make from here on are taken and silent as well."""
        self._hole = True
        for silent in self._links:
            silent.set()

    def close_hole(self) -> None:
        """New links pass everything on again. Those that fell silent stay so."""
        self._hole = False

    def silence_all_of(self, application_name: str) -> None:
        """The links of clients that call themselves so fall silent."""
        for silent, startup in self._links.items():
            if f"\0{application_name}\0".encode() in startup:
                silent.set()
                self.silenced += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent = asyncio.Event()
        if self._hole:
            silent.set()
        server = await self._connect_to_server()
        self._links[silent] = b""
        for pump in (self._pump(reader, server[1], silent, writer), self._pump(server[0], writer, silent)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect_to_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = parse_qs(urlsplit(self._behind.dsn).query)
        return await asyncio.open_unix_connection(f"{place['host'][0]}/.s.PGSQL.{place['port'][0]}")

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        silent: asyncio.Event,
        client: asyncio.StreamWriter | None = None,
    ) -> None:
        """Pass data on; what comes from `client` is listened to."""
        try:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(CHUNK):
                    if client is not None and not self._links[silent]:
                        self._links[silent] = data
                    if client is not None and self._cutter and self._cutter in data:
                        passed_on, self._cutter = self._passed_on, b""
                        self.cut += 1
                        client.transport.abort()
                        if passed_on is not None:
                            await passed_on.wait()
                            target.write(data)
                        return
                    if client is not None and self._trigger and self._trigger in data:
                        self._trigger = b""
                        self.silenced += 1
                        silent.set()
                    if not silent.is_set():
                        target.write(data)
                if silent.is_set():
                    await asyncio.Event().wait()  # the other end never hears of it
        finally:
            target.close()
