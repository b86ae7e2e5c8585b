"""The application of the test of connections: steps that hold their `trx()` for as long as LOCK is held."""

from __future__ import annotations

import zart

LOCK = 4711


@zart.zart_step("borrow")
async def borrow() -> int:
    connection = await zart.trx()
    await connection.execute("select pg_advisory_xact_lock_shared($1)", LOCK)
    return LOCK


@zart.zart_durable("borrowing")
async def borrowing() -> int:
    return await borrow()
