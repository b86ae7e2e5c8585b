"""Connections: what cannot be used is refused with one line that says why, and never with a password in it."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from zart.errors import DatabaseUnreachable
from zart.postgres import connection as module
from zart.postgres.connection import check_not_demoted, connect, create_pool
from zart.postgres.url import describe

SECRET = "s3cr3t"


async def refusal(dsn: str, *, timeout: float = 10.0) -> str:
    """The one line that connecting to a database ends with."""
    with pytest.raises(DatabaseUnreachable) as caught:
        await connect(dsn, application_name="test", timeout=timeout)
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return text


def changed(dsn: str, **parts: str) -> str:
    return urlsplit(dsn)._replace(**parts).geturl()


def as_user(dsn: str, user: str, password: str = "") -> str:
    return changed(dsn, netloc=f"{user}:{password}@" if password else f"{user}@")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest_asyncio.fixture
async def superuser(database: Database) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(database.dsn)
    yield made
    await made.close()


async def test_a_connection_shows_its_name_and_its_statements_stay_prepared(database: Database) -> None:
    made = await connect(database.dsn, application_name="zart test")
    assert await made.fetchval("show application_name") == "zart test"
    prepared = "select count(*) from pg_prepared_statements where statement = 'select 4711'"
    await made.fetchval("select 4711")
    assert await made.fetchval(prepared) == 1
    await made.close()


async def test_without_a_cache_no_statement_stays_prepared(database: Database) -> None:
    made = await connect(database.dsn, application_name="zart test", prepared_statements=False)
    await made.fetchval("select 4711")
    assert await made.fetchval("select count(*) from pg_prepared_statements where statement = 'select 4711'") == 0
    await made.close()


async def test_a_statement_ends_at_its_time(database: Database) -> None:
    made = await connect(database.dsn, application_name="zart test", command_timeout=0.05)
    with pytest.raises(TimeoutError):
        await made.fetchval("select pg_sleep(20)")
    made.terminate()


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "nonsense",
        "mysql://u:s3cr3t@host/db",
        "postgres:/u:s3cr3t@host/db",
        "postgresql://u:s3cr3t@host:port/db",
        "postgresql://u:s3cr3t@host:70000/db",
        "postgresql://u:s3@cr3t@host/db",
        "postgresql://u:1/s3cr3t@host/db",
        "postgresql://u:1?s3cr3t@host/db",
        "postgresql://u:1#s3cr3t@host/db",
        "postgresql://u:s3cr3t@[::1/db",
        "postgresql://u:s3cr3t@host/db\n",
        "host=localhost password=s3cr3t",
    ],
)
async def test_a_url_that_cannot_be_read_shows_the_right_shape_and_no_part_of_itself(dsn: str) -> None:
    text = await refusal(dsn)
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in text
    assert "cr3t" not in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("sslmode=bogus", "option sslmode cannot be used; it must be one of disable, allow, prefer, require"),
        ("target_session_attrs=best", "option target_session_attrs cannot be used"),
        ("sslrootcert=/none&sslmode=verify-full", "the file that option sslrootcert names is not there"),
    ],
)
async def test_an_option_that_cannot_be_used_is_named(options: str, told: str) -> None:
    assert told in await refusal(f"postgresql://u:{SECRET}@127.0.0.1:1/db?{options}")


async def test_an_unknown_host_is_called_unknown() -> None:
    text = await refusal(f"postgresql://u:{SECRET}@no-such-host.invalid/app")
    assert "database 'app' at no-such-host.invalid" in text
    assert "host name is unknown" in text


async def test_a_refused_connection_asks_whether_the_server_runs(closed_port: int) -> None:
    text = await refusal(f"postgresql://u:{SECRET}@127.0.0.1:{closed_port}/app")
    assert f"127.0.0.1:{closed_port}" in text
    assert "is the server running" in text


async def test_a_socket_that_is_not_there_asks_whether_the_server_runs() -> None:
    assert "is the server running" in await refusal(f"postgresql://u:{SECRET}@/app?host=/no/such/directory")


async def test_a_server_that_does_not_answer_is_waited_for_only_so_long(silent_port: int) -> None:
    dsn = f"postgresql://u:{SECRET}@127.0.0.1:{silent_port}/app"
    assert "no answer within 0.2 s" in await refusal(dsn, timeout=0.2)


async def test_a_server_that_is_no_postgresql_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await refusal(f"postgresql://u:{SECRET}@127.0.0.1:{port}/app")


async def test_a_missing_database_is_named(database: Database) -> None:
    text = await refusal(changed(as_user(database.dsn, "postgres", SECRET), path="/no_such_database"))
    assert "no_such_database" in text
    assert "create it" in text


async def test_an_unknown_user_is_told_to_check_user_and_password(database: Database) -> None:
    assert "check user and password" in await refusal(as_user(database.dsn, "nobody_here", SECRET))


async def test_a_role_with_another_isolation_level_is_refused(
    database: Database, superuser: asyncpg.Connection
) -> None:
    await superuser.execute("create role strict login")
    await superuser.execute("alter role strict set default_transaction_isolation = 'repeatable read'")
    try:
        text = await refusal(as_user(database.dsn, "strict"))
        assert "'repeatable read'" in text
        assert "alter role" in text
    finally:
        await superuser.execute("drop role strict")


async def test_a_server_older_than_14_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OLDEST_SERVER", 999)
    assert "999 or later" in await refusal(database.dsn)


async def test_a_refused_connection_is_not_left_open(
    database: Database, superuser: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OLDEST_SERVER", 999)
    await refusal(database.dsn)
    left = "select count(*) = 0 from pg_stat_activity where application_name = 'test'"
    assert await eventually(lambda: superuser.fetchval(left))


async def test_a_pool_is_checked_like_a_connection(closed_port: int) -> None:
    with pytest.raises(DatabaseUnreachable, match="is the server running"):
        _ = await create_pool(
            f"postgresql://127.0.0.1:{closed_port}/app", application_name="test", min_size=0, max_size=2
        )


async def test_a_pool_gives_a_connection_back_without_a_round_trip(database: Database) -> None:
    pool = await create_pool(database.dsn, application_name="test", min_size=0, max_size=1)
    async with pool.acquire() as made:
        await made.execute("set work_mem = '1234kB'")
    async with pool.acquire() as made:
        assert await made.fetchval("show work_mem") == "1234kB"
    await pool.close()


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://u:p@db.example.com:5433/app", "database 'app' at db.example.com:5433"),
        ("postgres://db.example.com/app?sslmode=require", "database 'app' at db.example.com"),
        ("postgresql://u:p%40@a:1,b:2/app", "database 'app' at a:1,b:2"),
        ("postgresql://u:p@[::1]:5432/app", "database 'app' at [::1]:5432"),
        ("postgresql:///app?host=/run/postgresql", "database 'app' at /run/postgresql"),
        ("postgresql://u@h?dbname=app", "database 'app' at h"),
        ("postgresql://h", "the database at h"),
    ],
)
def test_a_database_is_described_without_its_user(dsn: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    assert describe(dsn) == place


# -- several hosts, and links that are watched


async def test_a_host_that_never_answers_leaves_the_next_one_its_share_of_the_time(
    database: Database, silent_port: int
) -> None:
    async with Proxy(database) as proxy:
        there = urlsplit(proxy.database.dsn)
        dsn = changed(proxy.database.dsn, netloc=f"postgres@127.0.0.1:{silent_port},{there.hostname}:{there.port}")
        made = await connect(dsn, application_name="test", timeout=4)
        assert await made.fetchval("select 1") == 1
        await made.close()


async def test_a_server_that_is_read_only_is_passed_over(database: Database, superuser: asyncpg.Connection) -> None:
    name = await superuser.fetchval("select current_database()")
    await superuser.execute(f"alter database {name} set default_transaction_read_only = on")
    assert "no server there is a primary that takes writes" in await refusal(database.dsn)


async def test_a_server_that_has_become_read_only_is_told_by_its_next_answer(
    database: Database, superuser: asyncpg.Connection
) -> None:
    made = await connect(database.dsn, application_name="test")
    check_not_demoted(made, "here")
    await made.execute("set default_transaction_read_only = on")
    with pytest.raises(DatabaseUnreachable, match="here has become read-only"):
        check_not_demoted(made, "here")
    await made.close()


async def test_the_kernel_watches_the_links(database: Database) -> None:
    async with Proxy(database) as proxy:
        made = await connect(proxy.database.dsn, application_name="test")
        link = getattr(made, "_transport").get_extra_info("socket")  # noqa: B009
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_000
        await made.close()
