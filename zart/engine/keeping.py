"""Work on the database for as long as there is a process: begun again, ever later, when its connection is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from zart.errors import DatabaseError
from zart.log import logger
from zart.postgres.sqlstate import Fault, classify

_FIRST_BACKOFF: Final = 0.05
_LAST_BACKOFF: Final = 1.0
_LIVED: Final = 5.0

_log = logger("supervisor")


async def keep(purpose: str, work: Callable[[Callable[[], None]], Awaitable[None]]) -> NoReturn:
    """Do some work again and again, whatever it raises. An outage is told once, and its end.

    Args:
        purpose: what the connection is for, as the log names it.
        work: opens its connection and calls what it is given once it has one.
    """
    backoff, failed = _FIRST_BACKOFF, False

    def connected() -> None:
        nonlocal failed
        if failed:
            _log.info("the supervisor's connection for %s works again", purpose)
            failed = False

    while True:
        began = time.monotonic()
        try:
            await work(connected)
        except Exception as error:
            if not isinstance(error, DatabaseError) and classify(error) is Fault.BUG:
                _log.exception("the supervisor's work on %s failed; trying again", purpose)
            elif not failed:
                _log.warning("the supervisor has no connection for %s, trying again: %s", purpose, one_line(error))
            failed = True
        if time.monotonic() - began > _LIVED:
            backoff = _FIRST_BACKOFF
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
        backoff = min(backoff * 2, _LAST_BACKOFF)


def one_line(error: Exception) -> str:
    """An error's text, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
