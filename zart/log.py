"""Logging: stdlib loggers under "zart", with facts as fields. The library only speaks; runner and cli decide the look.

Fields are passed as `extra`: `worker`, `execution`, `run`, `step`, `epoch`. A database URL never goes into a message;
`zart.postgres.connection.describe` names a database without its password.
"""

from __future__ import annotations

import logging
from typing import Final

ROOT: Final = "zart"

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def logger(name: str) -> logging.Logger:
    """The logger of one part of zart: `logger("runner")` is "zart.runner"."""
    return logging.getLogger(f"{ROOT}.{name}")


def fields(
    *,
    worker: int | None = None,
    execution: str | int | None = None,
    run: int | None = None,
    step: str | None = None,
    epoch: int | None = None,
) -> dict[str, object]:
    """What a message is about, for `extra=`; what is None is left out.

    Example:
        >>> fields(execution="order-7", step="charge")
        {'execution': 'order-7', 'step': 'charge'}
    """
    facts = {"worker": worker, "execution": execution, "run": run, "step": step, "epoch": epoch}
    return {name: value for name, value in facts.items() if value is not None}
