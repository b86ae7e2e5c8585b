import pytest, asyncio, time
from tests.support.database import Database
from tests.support import fleet
from tests.support.workflows import make_effects
async def test_smoke(database: Database):
    c = await database.connect(); await make_effects(c)
    with fleet.Fleet(database) as f:
        print(await f.ready())
        t=time.time()
        await fleet.start(database, "sum", {f"s{i}": i for i in range(1000)})
        await fleet.all_ended(database)
        print("took", time.time()-t)
        print(f.stop())
        print(await c.fetch("select * from zart.zart_workers"))
    await c.close()
