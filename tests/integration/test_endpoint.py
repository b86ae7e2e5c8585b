"""The HTTP endpoint, attacked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.registry import Collector

from tests.support.eventually import eventually
from tests.support.web import get, send
from zart.runner import endpoint
from zart.runner.endpoint import MOST_CONNECTIONS, Endpoint
from zart.runner.listener import listen
from zart.runner.probes import Check

_STRANGE = 'a"\\\n\u202e\x00é' + "x" * 100

_parse: Any = getattr(parser, "text_string_to_metric_families")  # noqa: B009 - it has no types


class _Collecting(Collector):
    """One gauge; what it does before, a test may choose."""

    def __init__(self, before: Callable[[], None] = lambda: None, *, series: int = 1) -> None:
        self.before, self.series, self.asked = before, series, 0

    def collect(self) -> Iterator[Metric]:
        self.asked += 1
        self.before()
        family = GaugeMetricFamily("zart_test", "A test's.", labels=("task",))
        for number in range(self.series):
            family.add_metric((f"{_STRANGE}{number}",), number)
        yield family


@asynccontextmanager
async def served(collector: Collector, fault: str | None = None) -> AsyncIterator[int]:
    """An endpoint in this event loop; gives its port."""
    listener = listen("127.0.0.1", 0, host_option="--host", port_option="--port")
    made = Endpoint([collector], {"/livez": lambda: [Check("one"), Check("two", fault)]})
    async with made.serving(listener):
        yield listener.getsockname()[1]


async def test_metrics_come_as_text_or_as_openmetrics() -> None:
    async with served(_Collecting()) as port:
        plain = await get(port, "/metrics")
        assert (plain.status, plain.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert plain.values("zart_test") == {(f"{_STRANGE}0",): 0.0}
        for accept in ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", "application/openmetrics-text"):
            page = await get(port, "/metrics", accept=accept)
            assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            [family] = _parse(page.body)
            assert family.samples[0].labels == {"task": f"{_STRANGE}0"}


async def test_a_probe_names_each_check() -> None:
    async with served(_Collecting()) as port:
        well = await get(port, "/livez?verbose")
        assert (well.status, well.body) == (200, "one: ok\ntwo: ok\n")
    async with served(_Collecting(), "stands still") as port:
        ill = await get(port, "/livez")
        assert (ill.status, ill.body) == (503, "one: ok\ntwo: stands still\n")


async def test_other_pages_and_methods_are_refused() -> None:
    async with served(_Collecting()) as port:
        missing = await get(port, "/admin")
        assert (missing.status, missing.body) == (404, "not here; the pages are /metrics, /livez\n")
        assert (await get(port, "/metrics", method="DELETE")).status == 405
        head = await get(port, "/metrics", method="HEAD")
        assert (head.status, head.body) == (200, "")


_JUNK = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # the beginning of TLS
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /metrics\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //\xff\xfe%zz?\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"X-Header: y\r\n" * 100_000 + b"\r\n",
    b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nAccept: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + b"\x81\xff" * 100_000,
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"z" * 1_000_000,
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
]


async def test_junk_is_refused_without_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_CONNECTION", 1.0)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    junk = [*_JUNK, *(chance.randbytes(chance.randrange(1, 5_000)) for _ in range(40))]
    async with served(_Collecting()) as port, asyncio.timeout(60):
        answers = await asyncio.gather(*(send(port, data) for data in junk))
        assert (await get(port, "/livez")).status == 200
    assert not any(b"Traceback" in answer for answer in answers)
    assert max(answer.count(b"HTTP/1.1 ") for answer in answers) <= 2  # of which one may be 100 Continue
    assert [record.getMessage() for record in caplog.records if record.levelname not in ("DEBUG", "INFO")] == []


async def test_slow_clients_are_given_up_and_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_CONNECTION", 1.0)

    async def drip(port: int) -> float:
        """Send a request a byte at a time; seconds until the other end has had enough."""
        began = time.monotonic()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 1_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        return time.monotonic() - began

    async def never_read(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:  # what is sent into a connection that is gone fails
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    async with served(_Collecting(series=50_000)) as port, asyncio.timeout(60):
        slow = asyncio.gather(*(drip(port) for _ in range(10)), *(never_read(port) for _ in range(10)))
        while not slow.done():
            assert (await get(port, "/livez", within=5)).status == 200
        took = (await slow)[:10]
    assert all(isinstance(seconds, float) and 1.0 <= seconds < 30 for seconds in took)


async def test_hundreds_of_idle_connections_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_CONNECTION", 3600.0)
    async with served(_Collecting()) as port, asyncio.timeout(60):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(400)]
        ended = {number: asyncio.create_task(_end_of(reader)) for number, (reader, _) in enumerate(idle)}
        assert (await get(port, "/livez", within=5)).status == 200
        await eventually(lambda: sum(task.done() for task in ended.values()) >= 400 - MOST_CONNECTIONS + 1)
        assert all(ended[number].done() for number in range(400 - MOST_CONNECTIONS))
        assert not ended[399].done()
        for number, (_, writer) in enumerate(idle):
            writer.close()
            await ended[number]


async def _end_of(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()


async def test_a_page_that_takes_long_is_made_beside_the_loop_and_once_for_all_who_wait() -> None:
    collector = _Collecting(lambda: time.sleep(1.0))
    async with served(collector) as port:
        scrapes = [asyncio.create_task(get(port, "/metrics")) for _ in range(10)]
        await eventually(lambda: collector.asked == 1)
        assert (await get(port, "/livez")).status == 200
        assert not any(scrape.done() for scrape in scrapes)
        assert {(await scrape).status for scrape in scrapes} == {200}
        assert collector.asked <= 2  # one may have come late
        assert (await get(port, "/metrics")).status == 200


async def test_a_page_that_cannot_be_made_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no figures")

    async with served(_Collecting(fail)) as port:
        for _ in range(3):
            page = await get(port, "/metrics")
            assert (page.status, page.body) == (500, "the page cannot be made; the log has the reason\n")
        assert (await get(port, "/livez")).status == 200
    assert [record.getMessage() for record in caplog.records] == ["the page of metrics cannot be made"]
