"""Step keys and buckets as SQL computes them are those of the native module."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.database import Database, drop_database, make_database
from zart.codec import bucket_of, step_key
from zart.model import KeySpace
from zart.store.migrate import migrate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "step_keys.json").read_text())

_KEYS = """
    select zart.zart_xxh64_1(u.name, u.space)
    from unnest($1::text[], $2::bigint[]) with ordinality u(name, space, n) order by n
"""


async def keys(connection: asyncpg.Connection, names: Iterable[str], spaces: Iterable[int]) -> list[int]:
    signed = [space - 2**64 if space >= 2**63 else space for space in spaces]
    return [row[0] for row in await connection.fetch(_KEYS, list(names), signed)]


async def test_sql_computes_the_golden_step_keys(connection: asyncpg.Connection) -> None:
    vectors = GOLDEN["step_keys"]
    found = await keys(connection, [each["name"] for each in vectors], [each["space"] for each in vectors])
    assert found == [each["key"] for each in vectors]


async def test_sql_computes_the_keys_of_texts_of_every_length(connection: asyncpg.Connection) -> None:
    alphabet = random.Random(1)
    names = ["".join(alphabet.choices("abcz019 -/_é漢😀", k=size)) for size in range(160) for _ in range(5)]
    spaces = [number % 5 for number in range(len(names))]
    assert await keys(connection, names, spaces) == [step_key(*each) for each in zip(spaces, names, strict=True)]


# Hypothesis calls plain functions: these have a loop and a connection of their own.


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def own(runner: asyncio.Runner, server_dsn: str, template: str) -> Iterator[asyncpg.Connection]:
    database = runner.run(make_database(server_dsn, template))
    yield runner.run(database.connect())
    runner.run(drop_database(server_dsn, database))


@settings(deadline=None, max_examples=300)
@given(name=st.text(st.characters(exclude_characters="\0", codec="utf-8")), space=st.integers(0, 2**64 - 1))
@example(name="x" * 31, space=0)
@example(name="x" * 32, space=0)
@example(name="\U0010ffff" * 128, space=2**64 - 1)
def test_sql_computes_the_key_of_any_text(
    runner: asyncio.Runner, own: asyncpg.Connection, name: str, space: int
) -> None:
    assert runner.run(keys(own, [name], [space])) == [step_key(space, name)]


@pytest.mark.parametrize("buckets", [1, 2, 7, 1024])
async def test_sql_finds_the_bucket_of_an_id(empty_database: Database, buckets: int) -> None:
    connection = await empty_database.connect()
    await migrate(connection, "zart", buckets)
    ids = [f"order-{number}-é" for number in range(2000)]
    rows = await connection.fetch(
        "select zart.zart_bucket_1(u.id) from unnest($1::text[]) with ordinality u(id, n) order by n", ids
    )
    assert [row[0] for row in rows] == [bucket_of(each, buckets) for each in ids]
    await connection.close()


async def test_sql_offers_events_under_the_key_space_of_events(connection: asyncpg.Connection) -> None:
    await connection.execute("select zart.start_execution('a', 'task'), zart.offer_event('a', 'approved')")
    found = await connection.fetchval("select step_key from zart.zart_tasks")
    assert found == step_key(KeySpace.EVENT, "approved")
