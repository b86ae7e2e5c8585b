"""An application that logs wherever it runs; and registries whose lifespans fail, with a database's URL at hand."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import zart
from zart import TaskRegistry, zart_durable, zart_step

log = logging.getLogger("shop.orders")


@zart_step("flaky-{n}", retry="fixed(1, 1ms)")
async def flaky(n: int) -> int:
    log.info("trying", extra={"number": n})
    if zart.context().current_attempt == 0:
        raise ConnectionError("the first time")
    return n


@zart_step("count")
def count() -> int:
    log.info("counting", extra={"run": "my own"})
    return 3


async def _beside() -> None:
    log.info("beside")


@zart_durable("telling")
async def telling() -> int:
    log.info("beginning")
    await asyncio.create_task(_beside())
    await asyncio.to_thread(log.info, "in a thread of the body")
    return await flaky(1) + await count()


@asynccontextmanager
async def _broken() -> AsyncGenerator[None]:
    url = os.environ["EFFECTS_DSN"]
    password = urlsplit(url).password  # among the values of variables where it fails
    raise ConnectionRefusedError(f"no cache at {url}{'' if password else ', which has no password'}")
    yield


registry = TaskRegistry()
registry.register_module(sys.modules[__name__])
broken = TaskRegistry(lifespan=_broken)
broken.register(telling)
