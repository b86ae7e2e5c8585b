"""Triggers start executions and offer events: with the rows that are inserted, and not without them."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import zart
from tests.support.database import Database
from tests.support.served import served
from zart import zart_durable

MANY = 1_000

_TABLE = "create table orders(id bigint primary key, item text not null, paid boolean not null default false)"
_STARTS = """
    create function start_fulfilment() returns trigger language plpgsql as $$
    begin
      perform zart.start_execution('order-' || new.id, 'fulfil', to_json(new), queue => 'orders');
      return null;
    end $$;
    create trigger placed after insert on orders for each row execute function start_fulfilment();
"""
_OFFERS = """
    create function tell_of_payment() returns trigger language plpgsql as $$
    begin
      perform zart.offer_event('order-' || new.id, 'paid', to_json(new.item));
      return null;
    end $$;
    create trigger paid after update of paid on orders for each row execute function tell_of_payment();
"""
_STARTS_BY_STATEMENT = """
    create function start_all() returns trigger language plpgsql as $$
    begin
      perform zart.start_execution('order-' || id, 'fulfil', to_json(placed), queue => 'orders')
      from placed order by id;
      return null;
    end $$;
    create trigger all_placed after insert on orders referencing new table as placed
    for each statement execute function start_all();
"""


@zart_durable("fulfil", queue="orders")
async def fulfil(order: dict[str, Any]) -> str:
    item = await zart.wait_for_event("paid", str)
    return f"{item} for order {order['id']}"


@pytest_asyncio.fixture
async def orders(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A connection to a database that has a table of orders with triggers."""
    await connection.execute(_TABLE + ";" + _STARTS + _OFFERS)
    return connection


async def insert(connection: asyncpg.Connection, first: int, last: int) -> None:
    await connection.execute("insert into orders select n, 'tea' from generate_series($1::int, $2::int) n", first, last)


async def started(connection: asyncpg.Connection) -> int:
    """How many executions there are, each with its queue row in the lane of its record."""
    count: int = await connection.fetchval(
        "select count(*) from zart.zart_executions e join zart.zart_queue q using (id, bucket, lane)"
        " join zart.zart_lanes l using (lane) where l.queue = 'orders' and l.task_name = 'fulfil'"
    )
    assert count == await connection.fetchval("select count(*) from zart.zart_executions")
    return count


async def test_rows_that_are_inserted_and_updated_are_worked_on(orders: asyncpg.Connection, database: Database) -> None:
    async with served(database, fulfil) as scheduler:
        async with orders.transaction():
            await insert(orders, 1, 3)
        async with orders.transaction():
            await orders.execute("update orders set paid = true")
        for number in (1, 2, 3):
            assert await scheduler.wait_for(fulfil, f"order-{number}", timeout="20s") == f"tea for order {number}"


async def test_rows_that_are_rolled_back_start_nothing(orders: asyncpg.Connection) -> None:
    transaction = orders.transaction()
    await transaction.start()
    await insert(orders, 1, 3)
    assert await started(orders) == 3
    await transaction.rollback()
    assert await started(orders) == 0


async def test_a_refusal_undoes_the_row(orders: asyncpg.Connection) -> None:
    await orders.execute("select zart.start_execution('order-2', 'another task')")
    with pytest.raises(asyncpg.UniqueViolationError, match="'order-2' already exists as 'another task'"):
        await insert(orders, 1, 3)
    assert await orders.fetchval("select count(*) from orders") == 0


@pytest.mark.parametrize("by_statement", [False, True], ids=["for each row", "for each statement"])
async def test_a_statement_of_many_rows_starts_as_many(
    orders: asyncpg.Connection, database: Database, by_statement: bool
) -> None:
    if by_statement:
        await orders.execute("drop trigger placed on orders;" + _STARTS_BY_STATEMENT)
    await insert(orders, 1, MANY)
    assert await started(orders) == MANY
    await orders.execute("update orders set paid = true")
    async with served(database, fulfil) as scheduler:
        assert await scheduler.wait_for(fulfil, f"order-{MANY}", timeout="30s") == f"tea for order {MANY}"


async def test_two_transactions_that_insert_many_rows_at_once_do_not_disturb_each_other(
    orders: asyncpg.Connection, database: Database
) -> None:
    other = await database.connect()
    async with orders.transaction(), other.transaction():
        for at in range(0, MANY, 100):  # the first make the lane
            await asyncio.gather(insert(orders, at + 1, at + 100), insert(other, MANY + at + 1, MANY + at + 100))
    assert await started(orders) == 2 * MANY
    await other.close()
