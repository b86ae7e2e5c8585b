import asyncio, pytest
from tests.integration.test_supervisor import *
from zart.store import workers
async def test_dbg(database, connection):
    async with registered(database) as (w, place):
        a = await database.connect(); b = await database.connect()
        lost = 0
        for n in range(2000):
            idle = n % 2 == 0
            await asyncio.gather(workers.mark_idle(a, "zart", 0, [w.id], idle), workers.renew_leases(b, "zart", 0, [w.id], 1.0))
            if await connection.fetchval("select idle from zart.zart_workers") != idle: lost += 1; await workers.mark_idle(a, "zart", 0, [w.id], idle)
        print("lost", lost)
