"""`zart metrics` and `zart top`, as an operator types them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import sys
from asyncio.subprocess import Process
from functools import partial

import asyncpg
import pytest

from tests.support import workflows
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, start
from tests.support.servers import free_port
from tests.support.shell import ROOT, output_of, running
from tests.support.web import get, status
from zart import __version__

_NAMED = re.compile(r"metrics and health on http://127\.0\.0\.1:(\d+)")


async def port_of(process: Process) -> int:
    """The port that the log names."""
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while not (found := _NAMED.search((await process.stderr.readline()).decode())):
            assert not process.stderr.at_eof()
    return int(found[1])


async def ended(process: Process, number: signal.Signals) -> str:
    """What it wrote on stderr after the signal that ended it, with exit code 0."""
    process.send_signal(number)
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors
    return errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_metrics_shows_the_queues_without_a_worker_and_ends_on_a_signal(
    database: Database, connection: asyncpg.Connection, number: signal.Signals
) -> None:
    await start(database, "sum", {"a": 1, "b": 2})
    await connection.execute("update zart.zart_queue set run_at = now() - interval '90 s'")
    async with running(f"zart metrics --port 0 --database-url '{database.dsn}'") as process:
        port = await port_of(process)

        async def sampled() -> bool:
            return "zart_queue_executions" in (await get(port, "/metrics")).body

        await eventually(sampled)
        page = await get(port, "/metrics")
        assert page.values("zart_queue_executions")["default", "ready"] == 2
        assert page.values("zart_queue_executions")["default", "unclaimable"] == 2
        assert 90 <= page.values("zart_queue_oldest_ready_seconds")["default",] < 150
        [build] = page.values("zart_build_info")
        assert __version__ in build
        assert [await status(port, path) for path in ("/livez", "/readyz")] == [200, 200]
        shown = await output_of(f"zart top --once --url http://127.0.0.1:{port}")
        assert re.search(r"^default +9\d\.\d\d s|^default +1\d\d s", shown, re.MULTILINE), shown
        assert "Traceback" not in await ended(process, number)


async def test_metrics_tells_what_is_wrong_in_one_line(empty_database: Database) -> None:
    url = f"--database-url '{empty_database.dsn}'"
    assert "run `zart migrate`" in await output_of(f"zart metrics --port 0 {url}", code=2)
    nowhere = await output_of("zart metrics --port 0 --database-url postgresql://x:secret@127.0.0.1:1/app", code=2)
    assert "connection refused" in nowhere
    assert "secret" not in nowhere
    async with running(f"zart metrics --port 0 {url}"), asyncio.timeout(60):
        port = free_port()
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
        async with server:
            taken = await output_of(f"zart metrics --port {port} {url}", code=2)
    assert taken == f"zart: --port {port} is in use on 127.0.0.1; choose another one, or 0 for any that is free\n"


async def test_top_shows_what_a_fleet_does(database: Database, connection: asyncpg.Connection) -> None:
    await workflows.make_effects(connection)
    with Fleet(database, procs=1, options={"http_port": 0}) as fleet:
        await start(database, "slow", {"a": 600, "b": 600})
        await fleet.ready()
        port = int(_NAMED.findall(fleet.log())[0])

        async def all_there() -> str:
            shown = await output_of(f"zart top --once --url 127.0.0.1:{port}")
            return shown if " 2 of 256 slots" in shown and "as of" in shown else ""

        shown = await eventually(all_there, within=60)
        assert re.search(r"^executions +[\d.]+/s, 0\.0/s failed$", shown, re.MULTILINE), shown
        assert "1 ready" in shown
        assert "0 database errors" in shown


async def test_top_tells_in_one_line_that_there_is_no_such_page() -> None:
    port = free_port()
    assert await output_of(f"zart top --once --url http://127.0.0.1:{port}", code=1) == (
        f"zart: there is nothing at http://127.0.0.1:{port}/metrics (connection refused); start the runner with"
        " --http-port, or give its --url\n"
    )
    assert "--url must be as http://127.0.0.1:9464" in await output_of("zart top --once --url ftp://x", code=2)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<html>{{{ not metrics")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        other = await output_of(f"zart top --once --url http://127.0.0.1:{port}", code=1)
    assert other == f"zart: http://127.0.0.1:{port}/metrics is no page of metrics; give a runner's --url\n"


async def test_top_on_a_terminal_goes_on_while_its_page_is_away_until_it_is_interrupted() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n# TYPE zart_slots gauge\nzart_slots 77\n")
        writer.close()

    mine, terminal = pty.openpty()
    os.set_blocking(mine, False)
    shown = bytearray()

    def shows(text: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):
            shown.extend(os.read(mine, 65_536))
        return text in shown

    port = free_port()
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from zart.cli.main import main; main()", "top", "--url", f"http://127.0.0.1:{port}",
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    try:
        await eventually(partial(shows, b"0 of 77 slots"), within=60)
        server.close()
        await server.wait_closed()
        await eventually(partial(shows, b"trying again"))
        shown.clear()
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            await eventually(partial(shows, b"0 of 77 slots"))
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        assert not shows(b"Traceback")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(mine)
        os.close(terminal)
