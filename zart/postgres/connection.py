"""Connections to PostgreSQL: made with a deadline, checked, watched by the kernel, refused with one clear line.

Each is made from the URL alone: names of hosts are looked up every time, and no address is kept.

No message made here holds a password: a database URL is never printed, only the host, port and database it names.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import ssl
from typing import Any, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.pool import PoolConnectionProxy

from zart.errors import DatabaseUnreachable
from zart.postgres.url import URL_SHAPE, describe, hosts_of, missing_files

Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
"""An asyncpg connection, or one taken out of an asyncpg pool."""

CONNECT_TIMEOUT = 10.0
OLDEST_SERVER = 14

# What keeps a connection open (a worker, its supervisor) tries often rather than long, and gives up a statement without
# an answer in time to be back at work within 10 s of the end of the trouble. Healthy ones take milliseconds.
RECONNECT_TIMEOUT = 5.0
STATEMENT_TIMEOUT = 7.0

# When nothing comes from the other end, the kernel asks whether it is there, and takes none of its answers for a no:
# that also ends connections on which nobody waits, and those of statements that may take long.
_PROBE_AFTER, _PROBE_EVERY, _GIVE_UP_AFTER = 3, 1, 7  # seconds

_STATEMENT_CACHE = 200
# What asyncpg says of an option, without the value it got: "`sslmode` parameter must be one of: disable, allow".
_OPTION = re.compile(r"`?(\w+)`? (?:parameter must be|is expected to be)(?: one of: ([\w, -]+)$)?")
_CHECK = """
    select current_setting('default_transaction_isolation') as isolation, pg_backend_pid() as backend,
        pg_is_in_recovery() or current_setting('transaction_read_only') = 'on' as read_only
"""

# Databases reached through a pooler, by URL: the first connection of the process finds out.
_pooled: set[str] = set()


class ServerConnection(asyncpg.Connection):
    """asyncpg's connection, which knows whether it leads to one session of the server.

    Attributes:
        pooled: a pooler is in between. What follows the end of a transaction may run in another session, and what was
            left in this one (settings, advisory locks, LISTEN) may be met by another client.
    """

    pooled = False

    def _cancel_current_command(self, *waiters: asyncio.Future[None] | None) -> None:
        """A statement is given up. PgBouncer before 1.21 may die of a cancel request: its connection ends instead.

        asyncpg has more to write to it yet, and a next statement may wait for word of the cancel already.
        """
        if self.pooled:
            asyncio.get_running_loop().call_soon(self._end_with, *waiters)
        else:
            asyncpgs: Any = super()
            asyncpgs._cancel_current_command(*waiters)

    def _end_with(self, *waiters: asyncio.Future[None] | None) -> None:
        self.terminate()
        for waiter in waiters:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _get_unique_id(self, prefix: str) -> str:
        """A name for a statement or portal that no other client of a pooler gives (asyncpg counts, in each process)."""
        return f"__zart_{prefix}_{secrets.token_hex(8)}__"


async def connect(
    dsn: str,
    *,
    application_name: str,
    timeout: float = CONNECT_TIMEOUT,
    command_timeout: float | None = None,
    prepared_statements: bool | None = None,
    kind: type[ServerConnection] = ServerConnection,
) -> ServerConnection:
    """Connect to a primary server that can serve zart; of several hosts, to the first that is one.

    A host that does not answer takes no other one's share of the time.

    Args:
        dsn: `postgresql://user:password@host:port/database`; what it leaves out comes from the PG* variables.
        application_name: how the connection shows in pg_stat_activity.
        timeout: seconds to connect and to be checked.
        command_timeout: seconds each statement may take, None for no limit.
        prepared_statements: keep statements prepared on the server; None: unless a pooler is in between.
        kind: class of the connection.

    Raises:
        DatabaseUnreachable: no usable connection can be made; one line says why and what to do.
    """
    place = describe(dsn)
    try:
        async with asyncio.timeout(timeout):
            while True:
                keeps = dsn not in _pooled if prepared_statements is None else prepared_statements
                connection: ServerConnection = await _connect_to_first(
                    dsn,
                    timeout,
                    command_timeout=command_timeout,
                    statement_cache_size=_STATEMENT_CACHE if keeps else 0,
                    max_cached_statement_lifetime=0,
                    server_settings={"application_name": application_name},
                    connection_class=kind,
                    target_session_attrs=None if "target_session_attrs" in dsn else SessionAttribute.read_write,
                )
                connection.pooled = dsn in _pooled
                try:
                    _watch(connection)
                    await _check_server(connection, place)
                except BaseException:
                    connection.terminate()
                    raise
                if not (keeps and connection.pooled and prepared_statements is None):
                    return connection
                _pooled.add(dsn)
                connection.terminate()
    except DatabaseUnreachable:
        raise
    except Exception as error:
        raise DatabaseUnreachable(f"cannot connect to {place}: {_reason(error, dsn, timeout)}") from error


async def create_pool(
    dsn: str,
    *,
    application_name: str,
    min_size: int,
    max_size: int,
    timeout: float = CONNECT_TIMEOUT,
    command_timeout: float | None = None,
    prepared_statements: bool | None = None,
) -> asyncpg.Pool:
    """A pool whose connections are made by `connect`, the first of them at once.

    Connections carry no session state between users, so giving one back costs no round trip.

    Raises:
        DatabaseUnreachable: as `connect`; `acquire` raises it too.
    """

    async def open_connection(*_: object, **__: object) -> asyncpg.Connection:
        return await connect(
            dsn,
            application_name=application_name,
            timeout=timeout,
            command_timeout=command_timeout,
            prepared_statements=prepared_statements,
        )

    pool = await asyncpg.create_pool(
        min_size=min_size, max_size=max_size, connect=open_connection, reset=_keep_as_it_is
    )
    try:
        async with pool.acquire():
            return pool
    except BaseException:
        pool.terminate()
        raise


def is_demoted(connection: Connection) -> bool:
    """Whether the server has become read-only, as it told with its last answer; PostgreSQL 14 and later do."""
    settings: Any = connection.get_settings()
    told = (getattr(settings, "default_transaction_read_only", "off"), getattr(settings, "in_hot_standby", "off"))
    return "on" in told


def check_not_demoted(connection: Connection, place: str) -> None:
    """See that the server is the primary still.

    Raises:
        DatabaseUnreachable: it has become read-only.
    """
    if is_demoted(connection):
        raise DatabaseUnreachable(f"{place} has become read-only; another server is the primary")


async def _connect_to_first(dsn: str, timeout: float, **options: Any) -> Any:
    """A connection to the first of the hosts that will do, each having its share of the time.

    Raises: as asyncpg.connect, of the last host that there was an answer from, if there was any.
    """
    hosts = hosts_of(dsn)
    if len(hosts) < 2:
        return await asyncpg.connect(dsn, timeout=timeout, **options)
    told: Exception | None = None
    for host, port in hosts:
        try:
            return await asyncpg.connect(dsn, host=host, port=port, timeout=timeout / len(hosts), **options)
        except (OSError, asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched) as error:
            told = error if told is None or not isinstance(error, TimeoutError) else told
    assert told is not None
    raise told


def _watch(connection: asyncpg.Connection) -> None:
    """Have the kernel end the connection when the other end is silent for too long."""
    transport: asyncio.Transport = getattr(connection, "_transport")  # noqa: B009 - asyncpg gives no public way to it
    link = transport.get_extra_info("socket")
    if link is None or link.family == socket.AF_UNIX:
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _PROBE_AFTER),
        ("TCP_KEEPINTVL", _PROBE_EVERY),
        ("TCP_KEEPCNT", _GIVE_UP_AFTER - _PROBE_AFTER),
        ("TCP_USER_TIMEOUT", _GIVE_UP_AFTER * 1000),
    ):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _check_server(connection: ServerConnection, place: str) -> None:
    """Refuse a server that cannot serve zart, and note whether a pooler is in between.

    A pooler gives its client a process id of its own making, because its cancel requests come with it.
    """
    major = connection.get_server_version().major
    if major < OLDEST_SERVER:
        raise DatabaseUnreachable(
            f"{place} is served by PostgreSQL {major}; zart needs {OLDEST_SERVER} or later, upgrade the server"
        )
    check = await connection.prepare(_CHECK, name="")  # a named one might be left to another client of a pooler
    found = await check.fetchrow()
    assert found is not None
    connection.pooled = found["backend"] != connection.get_server_pid()
    if found["read_only"]:
        raise DatabaseUnreachable(f"{place} is a read-only standby; name the primary server")
    if found["isolation"] != "read committed":
        raise DatabaseUnreachable(
            f"{place} runs transactions as {found['isolation']!r} by default, zart needs 'read committed':"
            " alter role ROLE set default_transaction_isolation = 'read committed', for the role that zart uses"
        )


def _reason(error: Exception, dsn: str, timeout: float) -> str:
    """Why no connection came about, as one line with what to do."""
    match error:
        case TimeoutError():
            return f"no answer within {timeout:g} s; check host, port and firewall"
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return f"{_first_line(error)}; check user and password"
        case asyncpg.InvalidCatalogNameError():
            return f"{_first_line(error)}; create it or name another one"
        case asyncpg.TooManyConnectionsError():
            return f"{_first_line(error)}; raise max_connections or run fewer workers"
        case asyncpg.TargetServerAttributeNotMatched():
            return "no server there is a primary that takes writes; name the primary server"
        case asyncpg.CannotConnectNowError():
            return f"{_first_line(error)}; try again when it is up"
        case socket.gaierror():
            return "the host name is unknown; check the database URL"
        case ssl.SSLError() | ssl.CertificateError():
            return f"TLS failed ({_first_line(error)}); check sslmode and the certificates"
        case FileNotFoundError() if missing := missing_files(dsn):
            return f"the file that option {missing[0]} names is not there; correct it in the database URL"
        case FileNotFoundError():
            return "there is no server socket; is the server running?"
        case OSError():
            return _of_the_network(error)
        case asyncpg.ClientConfigurationError() if option := _OPTION.match(_first_line(error)):
            allowed = f"it must be one of {option[2]}" if option[2] else "correct it in the database URL"
            return f"option {option[1]} cannot be used; {allowed}"
        case asyncpg.ClientConfigurationError() | ValueError():
            return f"the database URL cannot be used; write it as {URL_SHAPE} with options of libpq"
        case _:
            return _first_line(error)


def _of_the_network(error: OSError) -> str:
    text = _first_line(error)
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in text or "Multiple exceptions" in text:
        return "connection refused; is the server running, and are host and port right?"
    return f"{os.strerror(error.errno) if error.errno else text}; is the server running?"


def _first_line(error: Exception) -> str:
    """The first line of an error's text. Servers and sockets never quote a password."""
    text = str(error.args[0]) if error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


async def _keep_as_it_is(_: asyncpg.Connection) -> None:
    """Resets nothing: zart's statements leave no session state behind."""
