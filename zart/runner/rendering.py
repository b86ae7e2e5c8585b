"""How log lines look: for people, or as JSON."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from zart.engine.log_context import LogContext
from zart.postgres.url import redacted
from zart.runner.options import LogFormat, LogLevel

# Without the values of variables: a database URL may be among them.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def render_logs(log_format: LogFormat, level: LogLevel = "info") -> None:
    """Send every logger of this process, and of those it forks, to stderr.

    Args:
        log_format: "console" for people (coloured on a terminal), "json" for one object per line.
        level: the least severe messages shown.
    """
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _add_fields,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_process,
    ]
    last: list[Processor] = (
        [_tracebacks, _redact, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.processors.format_exc_info,
            _redact,
            _leave_out_what_is_said,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LogContext())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    threading.excepthook = _log_death_of_thread


def _log_death_of_thread(death: threading.ExceptHookArgs) -> None:
    if death.exc_value is not None and not isinstance(death.exc_value, SystemExit):
        about = (death.exc_type, death.exc_value, death.exc_traceback)
        name = death.thread.name if death.thread is not None else "unknown"
        logging.getLogger("threading").error("thread %s ended with an exception", name, exc_info=about)


_extra = structlog.stdlib.ExtraAdder()


def _add_fields(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Those given as `extra`; one that is called as the message is does not take its place."""
    message = event["event"]
    event = _extra(logger, method, event)
    if event["event"] != message:
        event["event"], event["event_"] = message, event["event"]
    return event


def _add_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event


def _leave_out_what_is_said(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A field for machines whose whole text the line has anyway."""
    if str(event.get("reason")) in str(event.get("event")):
        event.pop("reason", None)
    return event


def _redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _without_passwords(value) for name, value in event.items()}


def _without_passwords(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {name: _without_passwords(one) for name, one in cast("dict[object, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_without_passwords(one) for one in cast("list[object]", value)]
    return redacted(repr(value))
