"""`zart migrate`: make or update zart's tables, or print the SQL that does it."""

from __future__ import annotations

from typing import Annotated

import typer

from zart.cli.database import DatabaseUrl, Embedded, Schema, SchemaDefault, ask
from zart.cli.executions import AsJson
from zart.cli.output import print_json
from zart.scheduler import PostgresScheduler
from zart.store.migrate import migration_script


def migrate(
    buckets: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Parts the data is made of, chosen once; more than 1 is for Citus. [default: 1]"
        ),
    ] = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL and touch no database.")] = False,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Make zart's tables, or bring them up to date.

    Safe to run twice, and by many at once.
    """
    if sql:
        print(migration_script(schema, buckets if buckets is not None else 1))
        return

    async def work(scheduler: PostgresScheduler) -> list[str]:
        return await scheduler.migrate(buckets=buckets)

    applied = ask(database_url, embedded, schema, work)
    if as_json:
        print_json({"schema": schema, "applied": applied})
    elif applied:
        print(f"schema {schema!r}: applied {', '.join(applied)}")
    else:
        print(f"schema {schema!r} is up to date")
