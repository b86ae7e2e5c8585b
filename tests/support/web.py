"""A client of HTTP pages that knows no more than a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Page:
    """What was answered. Names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: str

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """The samples of a metric in Prometheus' text format, by the values of their labels."""
        families = text_string_to_metric_families(self.body)
        found = (sample for family in families for sample in family.samples if sample.name == name)
        return {tuple(sample.labels.values()): sample.value for sample in found}


async def get(port: int, path: str, *, accept: str = "*/*", within: float = 10.0, method: str = "GET") -> Page:
    """Ask for a page on this host.

    Raises:
        OSError, TimeoutError, ValueError: there is no answer.
    """
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
    async with asyncio.timeout(within):
        head, _, body = (await send(port, request.encode())).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Page(int(status.split()[1]), headers, body.decode())


async def send(port: int, data: bytes) -> bytes:
    """Send bytes to a port of this host; what comes back until the other end closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        received = b""
        with contextlib.suppress(ConnectionError):  # it does not read all that is sent to it
            while data := await reader.read(65_536):
                received += data
        return received
    finally:
        writer.close()


async def status(port: int, path: str) -> int:
    """The status of a page, 0 where none is served."""
    try:
        return (await get(port, path)).status
    except (OSError, TimeoutError, ValueError, IndexError):
        return 0
