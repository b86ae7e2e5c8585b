"""The fault proxy with all its links in one place, to be cut or silenced at any moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.support.database import Database
from tests.support.proxy import Proxy


@dataclass(slots=True, eq=False)
class Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    silent: asyncio.Event
    pumps: tuple[asyncio.Task[None], ...] = ()

    def cut(self) -> None:
        """Both ends hear of it at once."""
        for writer in (self.client, self.server):
            writer.transport.abort()
        for pump in self.pumps:
            pump.cancel()


class Links(Proxy):
    """A proxy whose links are known. A client that comes while the database is away is sent away."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._all: list[Link] = []

    def open(self) -> list[Link]:
        """Links that carry data, in order of age."""
        self._all = [link for link in self._all if not all(pump.done() for pump in link.pumps)]
        return [link for link in self._all if not link.silent.is_set()]

    def heal(self) -> None:
        """End the links that have fallen silent."""
        for link in self._all:
            if link.silent.is_set():
                link.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await self._connect_to_server()
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server[1], asyncio.Event())
        self._links[link.silent] = b""
        link.pumps = (
            asyncio.create_task(self._pump(reader, server[1], link.silent, writer)),
            asyncio.create_task(self._pump(server[0], writer, link.silent)),
        )
        self._all.append(link)
        for pump in link.pumps:
            self._tasks.add(pump)
            pump.add_done_callback(self._tasks.discard)
