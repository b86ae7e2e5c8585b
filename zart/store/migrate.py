"""The schema's versions: numbered files, applied in order, each in one transaction, by one process at a time.

Migrate first, then roll the runners: a migration's first line says which libraries go on working with it, as
`-- serves_from: 1` for those that know version 1 or later. What they call stays as it is (a function that changes gets
the next number in its name); a migration that cannot keep that drops `zart_tick_N`, so that older workers end.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from dataclasses import dataclass
from importlib import resources
from time import monotonic
from typing import Final

from zart.errors import DatabaseError, InvalidArgument, SchemaMismatch, SchemaMissing, shown
from zart.log import logger
from zart.postgres.connection import Connection
from zart.postgres.sqlstate import Fault, classify
from zart.store.statements import in_schema, quoted, statement

MAX_BUCKETS = 1024
DEFAULT_BUCKETS = 1

PATIENCE: Final = 60.0
"""Seconds that a migration tries to get its locks, a moment at a time: all of the fleet waits behind it."""
_LONGEST_PAUSE: Final = 2.0

_INCLUDE = re.compile(r"^:include (\w+)$", re.MULTILINE)
_SERVES_FROM = re.compile(r"-- serves_from: (\d+)\n")

_log = logger("migrate")


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen once, at the first migration."""

    buckets: int


@dataclass(frozen=True, slots=True)
class Migration:
    """One version of the schema: its number, its name and its SQL with the schema's name put in.

    Attributes:
        serves_from: libraries whose own newest version is this or later can work with it.
    """

    version: int
    name: str
    text: str
    serves_from: int


async def migrate(
    connection: Connection, schema: str, buckets: int | None = None, *, patience: float = PATIENCE
) -> list[str]:
    """Bring the schema to this library's version; safe to run by many processes at once, and again.

    Args:
        connection: outside of a transaction.
        schema: name of the schema, made if it does not exist.
        buckets: how many buckets executions are spread over, chosen at the first migration; None: what is there, or 1.
        patience: seconds in which each migration must get its locks.

    Returns:
        Names of the migrations applied by this call.

    Raises:
        InvalidArgument: `buckets` is out of bounds, or not the number the schema was made with.
        SchemaMismatch: the schema is newer, and does not serve this library.
        DatabaseError: others hold a lock that a migration needs.
    """
    _check_buckets(buckets)
    applied: list[str] = []
    for migration in migrations(schema):
        if await _apply_in_time(connection, schema, migration, buckets, monotonic() + patience):
            applied.append(migration.name)
    await check_schema(connection, schema)
    return applied


async def _apply_in_time(
    connection: Connection, schema: str, migration: Migration, buckets: int | None, end: float
) -> bool:
    """Try again and again for as long as others hold what it needs, with pauses in which whoever waits may go on."""
    pause = 0.1
    while True:
        try:
            return await _apply(connection, schema, migration, buckets)
        except Exception as error:
            if classify(error) is not Fault.RETRY:
                raise
            who = await connection.fetchval(statement("who_blocks", schema), schema) or str(error)
            if monotonic() + pause >= end:
                raise DatabaseError(
                    f"migration {migration.name!r} of schema {schema!r} could not get its locks, nothing was changed:"
                    f" {who}; end that transaction, or migrate again later"
                ) from error
            _log.warning("migration %s waits for a lock, trying again: %s", migration.name, who)
        await asyncio.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _apply(connection: Connection, schema: str, migration: Migration, buckets: int | None) -> bool:
    """Apply it, unless somebody has; True if this call did."""
    async with connection.transaction():
        await connection.execute(_lock(schema))
        version, _ = await _version(connection, schema)
        chosen = await _settle_buckets(connection, schema, buckets, version)
        if version >= migration.version:
            return False
        await connection.execute(_whole(schema, migration, chosen))
        return True


async def check_schema(connection: Connection, schema: str) -> Settings:
    """The schema's settings, if it serves this library.

    Raises:
        SchemaMissing: there is none, or it is older.
        SchemaMismatch: it is newer, and this library is too old for it.
    """
    check_version(schema, *await _version(connection, schema))
    return Settings(buckets=await connection.fetchval(statement("read_buckets", schema)))


def check_version(schema: str, found: int, serves_from: int) -> None:
    """See that a schema whose newest migration is `found` serves this library.

    Raises:
        SchemaMissing, SchemaMismatch: as `check_schema`.
    """
    wanted = migrations(schema)[-1].version
    if found == 0:
        raise SchemaMissing(f"the database has no zart tables in schema {schema!r}; run `zart migrate`")
    if found < wanted:
        raise SchemaMissing(f"schema {schema!r} is at version {found}, this zart needs {wanted}; run `zart migrate`")
    if serves_from > wanted:
        raise SchemaMismatch(
            f"schema {schema!r} is at version {found}, which serves a zart that knows version {serves_from} or later;"
            f" this zart knows only {wanted}; upgrade zart"
        )


def migration_script(schema: str, buckets: int | None = None) -> str:
    """All migrations as one text for psql, for a database that has no zart tables in this schema yet."""
    _check_buckets(buckets)
    parts = ["\\set ON_ERROR_STOP on\n"]
    for migration in migrations(schema):
        whole = _whole(schema, migration, buckets or DEFAULT_BUCKETS)
        parts.append(f"-- {migration.name}\nbegin;\n{_lock(schema)};\n{whole}commit;\n")
    return "\n".join(parts)


def migrations(schema: str) -> list[Migration]:
    """Every version this library knows, in order."""
    folder = resources.files("zart.store").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [_read(name, folder.joinpath(name).read_text("utf-8"), schema) for name in names]


def _read(name: str, text: str, schema: str) -> Migration:
    serves_from = _SERVES_FROM.match(text)
    assert serves_from is not None, f"migration {name} does not begin with `-- serves_from: VERSION`"
    return Migration(int(name[:4]), name.removesuffix(".sql"), _text(text, schema), int(serves_from[1]))


def _text(text: str, schema: str) -> str:
    """A migration's SQL; a line `:include NAME` stands for the function in store/sql/NAME.sql."""
    return _INCLUDE.sub(lambda line: statement(line[1], schema), in_schema(text, schema))


def _lock(schema: str) -> str:
    key = int.from_bytes(hashlib.blake2b(schema.encode(), digest_size=8, person=b"zart").digest(), "big", signed=True)
    return f"select pg_advisory_xact_lock({key})"


def _whole(schema: str, migration: Migration, buckets: int) -> str:
    """One migration with what goes before and after it: plain statements without parameters, for any client."""
    values = {
        ":schema_text": _literal(schema),
        ":schema_name": quoted(schema),
        ":version": str(migration.version),
        ":migration": _literal(migration.name),
        ":serves_from": str(migration.serves_from),
        ":buckets": _literal(str(buckets)),
        ":by_bucket": "bucket," if buckets > 1 else "",
    }
    text = "".join((statement("begin_migration", schema), migration.text, statement("end_migration", schema)))
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


async def _settle_buckets(connection: Connection, schema: str, wanted: int | None, version: int) -> int:
    """The number of buckets chosen at the first migration, or to be chosen with it.

    Raises:
        InvalidArgument: another number is wanted now.
    """
    if version == 0:
        return wanted or DEFAULT_BUCKETS
    settled: int = await connection.fetchval(statement("read_buckets", schema))
    if wanted not in (None, settled):
        raise InvalidArgument(
            f"schema {schema!r} was made with {settled} buckets and cannot be changed to {wanted};"
            " leave the number out, or migrate into another schema"
        )
    return settled


async def _version(connection: Connection, schema: str) -> tuple[int, int]:
    """Number of the newest migration applied and of the oldest library it serves, 0 if the schema or its tables are
    missing."""
    if await connection.fetchval("select to_regclass($1)", f"{quoted(schema)}.zart_migrations") is None:
        return 0, 0
    found = await connection.fetchrow(statement("read_version", schema))
    assert found is not None
    return found["version"], found["serves_from"]


def _check_buckets(buckets: int | None) -> None:
    if buckets is not None and (type(buckets) is not int or not 1 <= buckets <= MAX_BUCKETS):
        raise InvalidArgument(f"buckets must be a whole number from 1 to {MAX_BUCKETS}, got {shown(buckets)}")
