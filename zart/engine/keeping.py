"""Work on the database for as long as there is a process: begun again, ever later, when its connection is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import asyncpg

from zart.errors import DatabaseError
from zart.log import logger
from zart.postgres.sqlstate import Fault, classify

_FIRST_BACKOFF: Final = 0.05
_LAST_BACKOFF: Final = 1.0
_LIVED: Final = 5.0

_log = logger("supervisor")


async def keep(
    purpose: str, work: Callable[[Callable[[], None]], Awaitable[None]], troubles: dict[str, str] | None = None
) -> NoReturn:
    """Do some work again and again, whatever it raises. An outage is told once, and its end.

    Args:
        purpose: what the connection is for, as the log names it.
        work: opens its connection and calls what it is given once it has one.
        troubles: why there is none, by purpose. What one of them has told, as that the schema is gone, others do not.
    """
    troubles = {} if troubles is None else troubles
    backoff, defects = _FIRST_BACKOFF, Counter[str]()
    about = {"purpose": purpose}

    def connected() -> None:
        if troubles.pop(purpose, None):
            _log.info("the supervisor's connection for %s works again", purpose, extra=about)

    while True:
        began = time.monotonic()
        try:
            await work(connected)
        except Exception as error:
            reason = one_line(error)
            if isinstance(error, DatabaseError) or classify(error) is not Fault.BUG:
                if reason not in troubles.values():
                    text = "the supervisor has no connection for %s, trying again: %s"
                    _log.warning(text, purpose, reason, extra={**about, "reason": reason})
                troubles[purpose] = reason
            else:
                defects[reason] += 1
                # The schema is checked before the next try, and may turn out to be why a statement is refused.
                if defects[reason] == 1 + isinstance(error, asyncpg.PostgresError):
                    _log.exception("the supervisor's work on %s failed; trying again", purpose, extra=about)
        if time.monotonic() - began > _LIVED:
            backoff = _FIRST_BACKOFF
            defects.clear()
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
        backoff = min(backoff * 2, _LAST_BACKOFF)


def one_line(error: Exception) -> str:
    """An error's text, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
