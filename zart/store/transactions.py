"""A step's own transaction: how it is marked at its beginning, and fenced right before its COMMIT."""

from __future__ import annotations

from dataclasses import dataclass

from zart.postgres.connection import Connection
from zart.store.statements import statement


@dataclass(frozen=True, slots=True)
class Fenced:
    """What the fence of a step's transaction says.

    `marked`: the transaction is the one that was begun for the step; if not, the rest means nothing. `held`: the claim
    stands. `stored`: the checkpoint is part of the transaction; if not, another one stands under its key.
    """

    marked: bool
    held: bool
    stored: bool


async def begin_trx(connection: Connection, schema: str, timeout: float) -> None:
    """Mark the transaction that was just begun as a step's own."""
    await connection.execute(statement("begin_trx", schema), timeout=timeout)


async def trx(
    connection: Connection,
    schema: str,
    bucket: int,
    worker: int,
    id: int,
    epoch: int,
    *,
    key: int,
    name: str,
    attempts: int,
    seconds: float,
    result: bytes,
    timeout: float,
) -> Fenced:
    """Fence a step's transaction and put its checkpoint into it; what follows is COMMIT or ROLLBACK, within seconds.

    Args:
        result: JSON.
        timeout: seconds to wait for the answer.
    """
    row = await connection.fetchrow(
        statement("trx", schema), bucket, worker, id, epoch, key, name, attempts, seconds, result, timeout=timeout
    )
    assert row is not None
    return Fenced(row["marked"], row["held"], row["stored"])
