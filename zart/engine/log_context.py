"""What log lines carry that are written while an execution's code runs: whose code it is."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from zart import log
from zart.engine.scope import current_scope


class LogContext(logging.Filter):
    """Tells of each log record which execution, step and try it comes from. It lets every record through.

    Put it on a handler: then it sees the records of all loggers. In code of an execution (its body, its steps, plain
    ones in threads included) a record gets the attributes `execution`, `task`, `run`, `epoch`, `attempt` and `worker`,
    in a step `step`, in a scheduled step `parent`. What a record has already by its `extra` stays. `zart-runner` has it
    on its own handler. It is a processor of structlog, too.

    Example:
        >>> handler = logging.StreamHandler()
        >>> handler.addFilter(zart.LogContext())
        >>> handler.setFormatter(logging.Formatter("%(message)s %(execution)s", defaults={"execution": "-"}))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in facts_here().items():
            record.__dict__.setdefault(name, value)
        return True

    def __call__(self, _: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in facts_here().items():
            event.setdefault(name, value)
        return event


def facts_here() -> dict[str, object]:
    """Whose code runs here, as fields of a log line."""
    scope = current_scope.get()
    if scope is None:
        return log.of_process
    host, _ = scope.whose()
    return {"worker": host.place.worker_id, **log.of_process, **scope.facts()}
