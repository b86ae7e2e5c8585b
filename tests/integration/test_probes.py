"""Health and metrics of real fleets: frozen, killed, cut off from their database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

import asyncpg
import pytest

from tests.support import workflows
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, is_alive, start
from tests.support.servers import a_server
from tests.support.web import Page, get, send, status

# Nobody is killed for standing still before the test has seen what the probes say.
_PATIENT = {"http_port": 0, "stall_timeout": "60s"}


async def port_of(fleet: Fleet) -> int:
    """The port that the runner has taken."""

    async def named() -> int:
        assert fleet.process.poll() is None, fleet.log()
        found = re.search(r"metrics and health on http://127\.0\.0\.1:(\d+)", fleet.log())
        return int(found[1]) if found else 0

    return await eventually(named, within=60)


async def probed(fleet: Fleet) -> int:
    """The port, once all workers are registered and control is there."""
    port = await port_of(fleet)
    await fleet.ready()

    async def all_well() -> bool:
        return [await status(port, path) for path in ("/startupz", "/readyz", "/livez")] == [200, 200, 200]

    await eventually(all_well, within=60)
    return port


async def says(port: int, path: str, code: int, within: float, still: int = 0) -> Page:
    """The page, once it has this status and names so many that stand still."""

    async def it_does() -> Page | None:
        try:
            page = await get(port, path)
        except (OSError, TimeoutError, ValueError, IndexError):  # control is made again at this moment
            return None
        return page if page.status == code and page.body.count("stands still for") == still else None

    found = await eventually(it_does, within=within, every=0.1)
    assert found is not None
    return found


async def test_frozen_processes_fail_the_liveness_probe_until_they_go_on(database: Database) -> None:
    with Fleet(database, options=_PATIENT) as fleet:
        port = await probed(fleet)
        frozen = (fleet.pid, (await fleet.ready())[0])
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        page = await says(port, "/livez", 503, within=15, still=2)
        assert [line.partition(" stands")[0].rstrip(":01") for line in page.body.splitlines()] == [
            "arbiter", "control: ok", "worker ",
        ]  # fmt: skip
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        await says(port, "/livez", 200, within=15)
        assert fleet.stop()[0] == 0


async def test_a_frozen_worker_is_replaced_and_the_probe_passes_again(database: Database) -> None:
    with Fleet(database, options={"http_port": 0, "stall_timeout": "7s"}) as fleet:
        port = await probed(fleet)
        worker, _ = await fleet.ready()
        os.kill(worker, signal.SIGSTOP)
        page = await says(port, "/livez", 503, within=15, still=1)
        assert page.body.startswith("arbiter: ok\ncontrol: ok\nworker ")
        page = await says(port, "/livez", 200, within=30)
        assert page.body == "arbiter: ok\ncontrol: ok\nworkers: ok\n"
        assert not is_alive(worker)
        assert fleet.stop()[1]["DEATHS"] == 1


async def test_workers_that_die_and_are_replaced_fail_no_liveness_probe(database: Database) -> None:
    with Fleet(database, options={"http_port": 0}) as fleet:
        port = await probed(fleet)
        seen: set[int] = set()

        async def probe() -> None:
            while True:
                seen.add((await get(port, "/livez")).status)

        probing = asyncio.create_task(probe())
        for _ in range(3):
            for pid in await fleet.ready():
                os.kill(pid, signal.SIGKILL)
                await eventually(partial(_is_gone, pid))
        await fleet.ready()
        probing.cancel()
        assert seen == {200}
        assert fleet.stop()[1]["DEATHS"] == 6


async def test_a_control_that_is_made_again_serves_the_same_port(database: Database) -> None:
    with Fleet(database, options={"http_port": 0}) as fleet:
        port = await probed(fleet)
        await says_queues(port)
        for _ in range(2):
            control = await fleet.control()
            os.kill(control, signal.SIGKILL)
            await eventually(partial(_is_gone, control))
            assert (await get(port, "/startupz", within=30)).status == 200
        await says(port, "/readyz", 200, within=30)
        assert fleet.stop()[0] == 0
    with pytest.raises(ConnectionRefusedError):
        await get(port, "/livez")


def _is_gone(pid: int) -> bool:
    return not is_alive(pid)


async def says_queues(port: int) -> Page:
    """The page of metrics, once the figures of the queues are on it."""

    async def there() -> Page | None:
        page = await get(port, "/metrics")
        assert page.status == 200
        return page if "zart_queue_sample_age_seconds" in page.body else None

    found = await eventually(there, within=30, every=0.1)
    assert found is not None
    return found


async def test_without_its_database_a_fleet_lives_but_is_not_ready() -> None:
    with a_server() as server:
        database = await server.database()
        with Fleet(database, procs=1, options={"http_port": 0}) as fleet:
            port = await probed(fleet)
            await says_queues(port)
            server.stop("immediate")
            page = await says(port, "/readyz", 503, within=15)
            assert page.body.startswith("database: ")
            assert f"database 'postgres' at 127.0.0.1:{server.port}" in page.body
            assert "postgres@" not in page.body
            assert (await get(port, "/livez")).status == (await get(port, "/startupz")).status == 200

            async def left_out() -> bool:
                page = await get(port, "/metrics", within=2)
                assert page.status == 200
                if "zart_queue_executions" not in page.body:
                    return True
                assert page.values("zart_queue_sample_age_seconds")[()] < 15
                return False

            await eventually(left_out, within=30, every=0.1)
            server.start()
            await says(port, "/readyz", 200, within=30)
            assert fleet.stop()[0] == 0


async def test_an_attack_on_the_port_holds_up_neither_leases_nor_work(
    database: Database, connection: asyncpg.Connection
) -> None:
    await workflows.make_effects(connection)
    with Fleet(database, config={"lease_timeout": "3s"}, options={"http_port": 0}) as fleet:
        port = await probed(fleet)
        registered, log = await fleet.workers(), fleet.log()

        async def attack(data: bytes) -> None:
            while True:
                with contextlib.suppress(OSError):
                    await send(port, data)

        async def renewals() -> datetime:
            found: datetime = await connection.fetchval("select min(lease_until) from zart.zart_workers")
            return found

        ways = (b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01junk", b"GET /me")
        attacks = [asyncio.create_task(attack(data)) for data in ways for _ in range(30)]
        try:
            await start(database, "sum", {f"s{n}": n for n in range(50)})
            for _ in range(4):
                before = await renewals()
                await eventually(partial(_has_moved, renewals, before), within=10)
            await all_ended(database)
            assert (await get(port, "/livez", within=15)).status == 200
        finally:
            for task in attacks:
                task.cancel()
        assert await fleet.workers() == registered
        assert fleet.log() == log
        assert fleet.stop()[1]["DEATHS"] == 0


async def _has_moved(read: Callable[[], Awaitable[datetime]], before: datetime) -> bool:
    return await read() > before


_NO_ADDRESS = "is no address of this host; choose one, as 127.0.0.1, or 0.0.0.0 for all"


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "--http-port {port} is in use on 127.0.0.1; choose another one, or 0 for any that is free"),
        ("192.0.2.1", f"--http-host '192.0.2.1' {_NO_ADDRESS}"),
        ("no.such.host.invalid", f"--http-host 'no.such.host.invalid' {_NO_ADDRESS}"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_in_one_line(host: str, said: str) -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Fleet(nowhere, options={"http_port": port, "http_host": host}) as fleet:
            code, words, errors = fleet.end()
    assert (code, words["FORKS"]) == (2, 0)
    assert errors == f"zart-runner: {said.format(port=port)}\n"
