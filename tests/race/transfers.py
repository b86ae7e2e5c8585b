"""Money is moved by `trx()` on several workers while their connections are cut and their claims taken: none is lost.

    python -m tests.race.transfers --seconds 60 --seed 7

runs it for longer, on an embedded PostgreSQL of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

import asyncpg

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from zart import WorkerConfig, zart_durable, zart_step
from zart.embedded import EmbeddedPostgres
from zart.store.migrate import migrate

ACCOUNTS = 6
TRANSFERS = 4
AT_ONCE = 40
ISOLATIONS = ("read committed", "repeatable read", "serializable")

_CUT = (
    "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity where application_name = $1"
    " and datname = current_database() order by random() limit $2) a"
)


@dataclass(frozen=True)
class Move:
    """One transfer."""

    source: int
    target: int
    amount: int
    isolation: str
    pause: float


@zart_step("move-{n}", retry="fixed(10000, 2ms)")
async def move(n: int, one: Move) -> int:
    """Takes the rows in the order of the transfer: deadlocks come of themselves."""
    conn = await zart.trx()
    await conn.execute(f"set transaction isolation level {one.isolation}")
    await conn.execute("update accounts set balance = balance - $2 where id = $1", one.source, one.amount)
    await asyncio.sleep(one.pause)
    left: int = await conn.fetchval(
        "update accounts set balance = balance + $2 where id = $1 returning balance", one.target, one.amount
    )
    await conn.execute("insert into moved values ($1, $2)", zart.context().execution_id, n)
    return left


@zart_durable("transfers", retry="fixed(100, 5ms)")
async def transfers(moves: list[Move]) -> int:
    for n, one in enumerate(moves):
        await move(n, one)
    return len(moves)


@dataclass
class Ledger:
    """What was ordered, and what was done to the workers meanwhile."""

    moves: dict[str, list[Move]] = field(default_factory=dict[str, list[Move]])
    faults: Counter[str] = field(default_factory=Counter[str])

    def order(self, chance: random.Random) -> str:
        """Think of an execution."""
        name = f"transfers-{len(self.moves)}"
        self.moves[name] = [_thought_of(chance) for _ in range(TRANSFERS)]
        return name

    def balances(self) -> list[int]:
        """What every account must have."""
        balances = [0] * ACCOUNTS
        for moves in self.moves.values():
            for one in moves:
                balances[one.source] -= one.amount
                balances[one.target] += one.amount
        return balances


def _thought_of(chance: random.Random) -> Move:
    source, target = chance.sample(range(ACCOUNTS), 2)
    return Move(source, target, chance.randint(1, 100), chance.choice(ISOLATIONS), chance.choice((0, 0, 0.002, 0.02)))


async def run(database: Database, *, seed: int, seconds: float) -> tuple[Ledger, list[str]]:
    """Move money for so long, then let all that was ordered come to its end.

    Returns:
        What was done, and what is wrong with the outcome: nothing, if zart is right.
    """
    chance, ledger = random.Random(seed), Ledger()
    connection = await database.connect()
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"alter database {name} set deadlock_timeout = '20ms'")
    await connection.execute(
        "create table accounts(id int primary key, balance bigint not null);"
        "create table moved(execution_id text, n int)"
    )
    await connection.executemany("insert into accounts values ($1, 0)", [(n,) for n in range(ACCOUNTS)])
    async with Engine(database, [transfers], workers=2, config=WorkerConfig(lease_timeout="1h")) as engine:
        faults = asyncio.create_task(_faults(engine, ledger, chance))
        until = monotonic() + seconds
        while monotonic() < until:
            if await connection.fetchval("select count(*) from zart.zart_queue") < AT_ONCE:
                ordered = ledger.order(chance)
                await engine.start(ordered, transfers, [vars(one) for one in ledger.moves[ordered]])
            else:
                await asyncio.sleep(0.005)
        faults.cancel()
        await engine.all_ended()
    wrong = await _wrong(connection, ledger)
    await connection.close()
    return ledger, wrong


async def _faults(engine: Engine, ledger: Ledger, chance: random.Random) -> None:
    connection = await engine.database.connect()
    while True:
        await asyncio.sleep(chance.uniform(0, 0.1))
        match chance.randrange(5):
            case 0:
                ledger.faults["workers cut"] += await connection.fetchval(_CUT, "zart worker", 1)
            case 1:
                ledger.faults["claims taken"] += await engine.take_over(chance.choice(engine.loops))
            case _:
                ledger.faults["transactions cut"] += await connection.fetchval(_CUT, "zart trx", 2)


async def _wrong(connection: asyncpg.Connection, ledger: Ledger) -> list[str]:
    wrong: list[str] = []
    found = [row[0] for row in await connection.fetch("select balance from accounts order by id")]
    if found != ledger.balances():
        wrong.append(f"balances are {found}, and should be {ledger.balances()}")
    for row in await connection.fetch("select execution_id, n, count(*) from moved group by 1, 2 having count(*) > 1"):
        wrong.append(f"{row[0]} has moved {row[2]} times what it was to move once, in move {row[1]}")
    done = await connection.fetchval("select count(*) from moved")
    if done != TRANSFERS * len(ledger.moves):
        wrong.append(f"{done} moves were made, and not {TRANSFERS * len(ledger.moves)}")
    for row in await connection.fetch(
        "select execution_id, status, error::text as error from zart.zart_executions where status <> 1"
    ):
        wrong.append(f"{row['execution_id']} has ended with status {row['status']}: {row['error']}")
    return wrong


async def _main(seed: int, seconds: float) -> None:
    with EmbeddedPostgres() as server:
        connection = await asyncpg.connect(server.dsn)
        await migrate(connection, "zart", 1)
        await connection.close()
        ledger, wrong = await run(Database(server.dsn), seed=seed, seconds=seconds)
    print(f"seed {seed}: {len(ledger.moves)} executions, {dict(ledger.faults)}")
    print("\n".join(wrong) or "every balance is exact")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.getrandbits(32))
    asked = parser.parse_args()
    asyncio.run(_main(asked.seed, asked.seconds))
