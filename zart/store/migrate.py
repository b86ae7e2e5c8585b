"""The schema's versions: numbered files, applied in order, each in one transaction, by one process at a time."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

from zart.errors import InvalidArgument, SchemaMismatch, SchemaMissing, shown
from zart.postgres.connection import Connection
from zart.store.statements import in_schema, quoted, statement

MAX_BUCKETS = 1024
DEFAULT_BUCKETS = 1

_INCLUDE = re.compile(r"^:include (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen once, at the first migration."""

    buckets: int


@dataclass(frozen=True, slots=True)
class Migration:
    """One version of the schema: its number, its name and its SQL with the schema's name put in."""

    version: int
    name: str
    text: str


async def migrate(connection: Connection, schema: str, buckets: int | None = None) -> list[str]:
    """Bring the schema to this library's version; safe to run by many processes at once, and again.

    Args:
        connection: outside of a transaction.
        schema: name of the schema, made if it does not exist.
        buckets: how many buckets executions are spread over, chosen at the first migration; None: what is there, or 1.

    Returns:
        Names of the migrations applied by this call.

    Raises:
        InvalidArgument: `buckets` is out of bounds, or not the number the schema was made with.
        SchemaMismatch: the schema is newer than this library.
    """
    _check_buckets(buckets)
    applied: list[str] = []
    for migration in migrations(schema):
        async with connection.transaction():
            await connection.execute(_lock(schema))
            version = await _version(connection, schema)
            chosen = await _settle_buckets(connection, schema, buckets, version)
            if version < migration.version:
                await connection.execute(_whole(schema, migration, chosen))
                applied.append(migration.name)
    await check_schema(connection, schema)
    return applied


async def check_schema(connection: Connection, schema: str) -> Settings:
    """The schema's settings, if it is of this library's version.

    Raises:
        SchemaMissing: there is none, or it is older.
        SchemaMismatch: it is newer.
    """
    wanted = migrations(schema)[-1].version
    found = await _version(connection, schema)
    if found == 0:
        raise SchemaMissing(f"the database has no zart tables in schema {schema!r}; run `zart migrate`")
    if found < wanted:
        raise SchemaMissing(f"schema {schema!r} is at version {found}, this zart needs {wanted}; run `zart migrate`")
    if found > wanted:
        raise SchemaMismatch(f"schema {schema!r} is at version {found}, this zart knows only {wanted}; upgrade zart")
    return Settings(buckets=await connection.fetchval(statement("read_buckets", schema)))


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
    return [
        Migration(int(name[:4]), name.removesuffix(".sql"), _text(folder.joinpath(name).read_text("utf-8"), schema))
        for name in names
    ]


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


async def _version(connection: Connection, schema: str) -> int:
    """Number of the newest migration applied, 0 if the schema or its tables are missing."""
    if await connection.fetchval("select to_regclass($1)", f"{quoted(schema)}.zart_migrations") is None:
        return 0
    found: int = await connection.fetchval(statement("read_version", schema))
    return found


def _check_buckets(buckets: int | None) -> None:
    if buckets is not None and (type(buckets) is not int or not 1 <= buckets <= MAX_BUCKETS):
        raise InvalidArgument(f"buckets must be a whole number from 1 to {MAX_BUCKETS}, got {shown(buckets)}")
