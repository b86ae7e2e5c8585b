"""SQLAlchemy and psycopg start executions and offer events in their own transactions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest
from psycopg.types.json import Json, Jsonb
from sqlalchemy import JSON, create_engine, func, literal, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

import zart
from tests.support.database import Database
from tests.support.served import served
from zart import PostgresScheduler, zart_durable

TABLE = "create table orders (id text primary key, item text not null)"


@zart_durable("fulfil")
async def fulfil(order: dict[str, Any]) -> str:
    return f"{order['item']}, paid by {await zart.wait_for_event('paid', str)}"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


class RolledBack(Exception):
    """The caller's transaction is to be rolled back."""


Place: TypeAlias = Callable[[str, bool], Awaitable[list[Any]]]
"""Inserts the order 'a', starts its execution and offers it the event in one transaction of a database; raises
RolledBack at its end if told so. Gives back what start and offer answered."""


async def with_asyncpg(dsn: str, fails: bool) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("insert into orders values ('a', 'tea')")
            data = json.dumps({"item": "tea"})
            created = await connection.fetchval("select zart.start_execution($1, $2, $3)", "a", "fulfil", data)
            answer = await connection.fetchval("select zart.offer_event($1, $2, $3)", "a", "paid", '"ada"')
            if fails:
                raise RolledBack
    finally:
        await connection.close()
    return [created, answer]


async def with_asyncpg_joined(dsn: str, fails: bool) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        async with PostgresScheduler.connect(dsn) as scheduler, connection.transaction():
            await connection.execute("insert into orders values ('a', 'tea')")
            created = (await scheduler.start_for(fulfil, "a", {"item": "tea"}, conn=connection)).created
            answer = await scheduler.offer_event("a", "paid", "ada", conn=connection)
            if fails:
                raise RolledBack
    finally:
        await connection.close()
    return [created, answer]


async def with_sqlalchemy_async(dsn: str, fails: bool) -> list[Any]:
    engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(id="a", item="tea"))
        created = await session.scalar(select(func.zart.start_execution("a", "fulfil", literal({"item": "tea"}, JSON))))
        answer = await session.scalar(select(func.zart.offer_event("a", "paid", literal("ada", JSONB))))
        if fails:
            raise RolledBack
    return [created, answer]


async def with_sqlalchemy_async_joined(dsn: str, fails: bool) -> list[Any]:
    engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
    async with (
        PostgresScheduler.connect(dsn) as scheduler,
        AsyncSession(engine) as session,
        session.begin(),
    ):
        session.add(Order(id="a", item="tea"))
        await session.flush()
        conn = (await (await session.connection()).get_raw_connection()).driver_connection
        created = (await scheduler.start_for(fulfil, "a", {"item": "tea"}, conn=conn)).created
        answer = await scheduler.offer_event("a", "paid", "ada", conn=conn)
        if fails:
            raise RolledBack
    return [created, answer]


async def with_sqlalchemy_text(dsn: str, fails: bool) -> list[Any]:
    engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("insert into orders values ('a', 'tea')"))
        created = await connection.scalar(
            text("select zart.start_execution(:id, 'fulfil', :data, delay => :delay)"),
            {"id": "a", "data": json.dumps({"item": "tea"}), "delay": timedelta(0)},
        )
        answer = await connection.scalar(text("select zart.offer_event(:id, 'paid', '\"ada\"')"), {"id": "a"})
        if fails:
            raise RolledBack
    return [created, answer]


async def with_sqlalchemy_sync(dsn: str, fails: bool) -> list[Any]:
    def place() -> list[Any]:
        engine = create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
        with Session(engine) as session, session.begin():
            session.add(Order(id="a", item="tea"))
            data = literal({"item": "tea"}, JSON)
            created = session.scalar(select(func.zart.start_execution("a", "fulfil", data)))
            answer = session.scalar(select(func.zart.offer_event("a", "paid", literal("ada", JSONB))))
            if fails:
                raise RolledBack
        return [created, answer]

    return await asyncio.to_thread(place)


async def with_psycopg_sync(dsn: str, fails: bool) -> list[Any]:
    def place() -> list[Any]:
        with psycopg.connect(dsn) as connection:
            connection.execute("insert into orders values ('a', 'tea')")
            data = Json({"item": "tea"})
            created = connection.execute("select zart.start_execution(%s, %s, %s)", ("a", "fulfil", data)).fetchone()
            answer = connection.execute("select zart.offer_event(%s, %s, %s)", ("a", "paid", Jsonb("ada"))).fetchone()
            if fails:
                raise RolledBack
        return [*(created or ()), *(answer or ())]

    return await asyncio.to_thread(place)


async def with_psycopg_async(dsn: str, fails: bool) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("insert into orders values ('a', 'tea')")
        data = json.dumps({"item": "tea"})  # as text without a type
        started = await connection.execute("select zart.start_execution(%s, 'fulfil', %s)", ("a", data))
        created = await started.fetchone()
        offered = await connection.execute("select zart.offer_event(%s, 'paid', %s)", ("a", Jsonb("ada")))
        answer = await offered.fetchone()
        if fails:
            raise RolledBack
    return [*(created or ()), *(answer or ())]


CALLERS = [
    with_asyncpg,
    with_asyncpg_joined,
    with_sqlalchemy_async,
    with_sqlalchemy_async_joined,
    with_sqlalchemy_text,
    with_sqlalchemy_sync,
    with_psycopg_sync,
    with_psycopg_async,
]


def _named(place: Place) -> str:
    return getattr(place, "__name__", "").removeprefix("with_")


@pytest.mark.parametrize("place", CALLERS, ids=_named)
async def test_what_commits_together_is_run_by_a_worker(
    database: Database, connection: asyncpg.Connection, place: Place
) -> None:
    await connection.execute(TABLE)
    assert await place(database.dsn, False) == [True, "accepted"]
    assert await connection.fetchval("select item from orders where id = 'a'") == "tea"
    async with served(database, fulfil) as scheduler:
        assert await scheduler.wait_for(fulfil, "a", timeout="20s") == "tea, paid by ada"


@pytest.mark.parametrize("place", CALLERS, ids=_named)
async def test_what_is_rolled_back_together_was_never_there(
    database: Database, connection: asyncpg.Connection, place: Place
) -> None:
    await connection.execute(TABLE)
    with pytest.raises(RolledBack):
        await place(database.dsn, True)
    for table in ("orders", "zart.zart_executions", "zart.zart_queue", "zart.zart_tasks"):
        assert await connection.fetchval(f"select count(*) from {table}") == 0
    assert await place(database.dsn, False) == [True, "accepted"]


async def test_refusals_come_as_the_errors_of_the_callers_library(database: Database) -> None:
    def call() -> None:
        engine = create_engine(database.dsn.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
        with engine.connect() as connection:
            connection.scalar(select(func.zart.start_execution("a", "fulfil")))
            with pytest.raises(IntegrityError, match="already exists as 'fulfil'"), connection.begin_nested():
                connection.scalar(select(func.zart.start_execution("a", "other")))
            with pytest.raises(DBAPIError) as caught, connection.begin_nested():
                connection.scalar(select(func.zart.offer_event("nobody", "paid")))
            assert isinstance(caught.value.orig, psycopg.errors.NoDataFound)
            assert (caught.value.orig.diag.message_hint or "").startswith("Start it before")

    await asyncio.to_thread(call)
