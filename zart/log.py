"""Logging: stdlib loggers under "zart", with facts as fields. The library only speaks; runner and cli decide the look.

Fields are passed as `extra`, by these names: `execution` (the caller's id), `task`, `run`, `epoch`, `step`, `attempt`;
`worker` is the number of a runner's worker, `worker_id` what it is registered as in the database. A database URL never
goes into a message; `zart.postgres.url.describe` names a database without its password.
"""

from __future__ import annotations

import logging
from typing import Final

ROOT: Final = "zart"

logging.getLogger(ROOT).addHandler(logging.NullHandler())

of_process: dict[str, object] = {}
"""What every line of this process carries; a runner's worker has its number here."""


def logger(name: str) -> logging.Logger:
    """The logger of one part of zart: `logger("runner")` is "zart.runner"."""
    return logging.getLogger(f"{ROOT}.{name}")


def fields(**facts: object) -> dict[str, object]:
    """What a message is about, for `extra=`; what is None is left out.

    Example:
        >>> fields(execution="order-7", step="charge", run=None)
        {'execution': 'order-7', 'step': 'charge'}
    """
    return {name: value for name, value in facts.items() if value is not None}
