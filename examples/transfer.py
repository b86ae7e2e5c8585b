"""Money moved between accounts, exactly once: the rows of the application and the step's checkpoint commit together.

Serve it, from the directory above this one, and in a second shell open two accounts and move money between them:

    zart-runner --app examples.transfer --procs 2 --embedded ./db

    zart start open-accounts --id bank --data '{"ada": 100, "bob": 0}' --embedded ./db
    zart wait bank --embedded ./db
    zart start transfer --id rent-7 --data '{"source": "ada", "target": "bob", "amount": 70}' --embedded ./db
    zart wait rent-7 --embedded ./db
    zart start balances --id evening --embedded ./db
    zart wait evening --embedded ./db

Kill workers meanwhile as often as you like. Or watch it in one process, with a PostgreSQL of its own:

    python examples/transfer.py
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zart
from zart import BusinessErr, Ok, ZartErr, zart_durable, zart_step
from zart.embedded import EmbeddedPostgres


@dataclass(frozen=True)
class Transfer:
    """What is to be moved."""

    source: str
    target: str
    amount: int


class NotEnoughMoney(Exception):
    """The bank says no: a decision, which is never retried. What the step wrote before is rolled back."""


@zart_step("create-accounts")
async def create_accounts(balances: dict[str, int]) -> int:
    """Tables can be made in a transaction too."""
    conn = await zart.trx()
    await conn.execute("create table if not exists accounts (owner text primary key, balance int not null)")
    for owner, balance in balances.items():
        await conn.execute("insert into accounts values ($1, $2)", owner, balance)
    return len(balances)


@zart_step("move", raises=NotEnoughMoney, retry="exponential(10, 50ms)", timeout="1m")
async def move(transfer: Transfer) -> int:
    """Either both accounts change and the step is done, or neither and it is not. When its worker dies it begins again,
    but it is committed once. Two transfers that wait for each other are a deadlock: PostgreSQL ends one, and zart runs
    that one again.
    """
    conn = await zart.trx()
    await conn.execute("update accounts set balance = balance + $2 where owner = $1", transfer.target, transfer.amount)
    left: int = await conn.fetchval(
        "update accounts set balance = balance - $2 where owner = $1 returning balance",
        transfer.source,
        transfer.amount,
    )
    if left < 0:
        raise NotEnoughMoney(f"{transfer.source} has only {left + transfer.amount}")
    return left


@zart_step("tell", retry="exponential(5, 1s)")
async def tell(owner: str, text: str) -> None:
    """What leaves the database happens at least once: a step of its own, which begins when the money has moved."""
    print(f"to {owner}: {text}")


@zart_step("read-balances")
async def read_balances() -> dict[str, int]:
    conn = await zart.trx()
    return {row["owner"]: row["balance"] for row in await conn.fetch("select * from accounts order by owner")}


@zart_durable("open-accounts")
async def open_accounts(balances: dict[str, int]) -> int:
    return await create_accounts(balances)


@zart_durable("transfer")
async def transfer_money(transfer: Transfer) -> str:
    match await zart.outcome(move(transfer)):
        case Ok(left):
            said = f"{transfer.amount} sent to {transfer.target}, {left} left"
        case BusinessErr(NotEnoughMoney() as refused):
            said = f"nothing sent to {transfer.target}: {refused}"
        case ZartErr(failure):
            raise failure
    await tell(transfer.source, said)
    return said


@zart_durable("balances")
async def balances() -> dict[str, int]:
    return await read_balances()


async def main() -> None:
    registry = zart.TaskRegistry()
    for durable in (open_accounts, transfer_money, balances):
        registry.register(durable)
    with EmbeddedPostgres() as postgres:
        async with zart.PostgresScheduler.connect(postgres.dsn) as scheduler:
            await scheduler.migrate()
            worker = zart.Worker(scheduler, registry)
            running = asyncio.create_task(worker.run())

            await scheduler.start_and_wait_for(open_accounts, "bank", {"ada": 100, "bob": 50}, timeout="30s")
            orders = [Transfer("ada", "bob", 70), Transfer("bob", "ada", 20), Transfer("ada", "bob", 1000)]
            handles = [
                await scheduler.start_for(transfer_money, f"transfer-{n}", order) for n, order in enumerate(orders)
            ]
            await asyncio.gather(*(handle.result(timeout="30s") for handle in handles))
            print(await scheduler.start_and_wait_for(balances, "evening", timeout="30s"))

            worker.stop()
            await running


if __name__ == "__main__":
    asyncio.run(main())
