"""OpenTelemetry: a span for each turn and for each try of a step, once the program has a tracer provider.

A turn begins a trace of its own: an execution may sleep for a year, and no span is that long. What belongs together is
linked: each turn to the context that its execution was started in, and to the turn before it, which may have been
parked or may have died with its process. Contexts are stored as W3C traceparents.

Nothing here imports OpenTelemetry before the program has: without it a call costs one look-up in a dict.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from zart.log import logger

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext, Tracer

_Values: TypeAlias = "Mapping[str, str | int]"

_FORM = re.compile(r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})")
_tracers: dict[Any, Tracer] = {}
_told = False
_log = logger("tracing")


@contextlib.contextmanager
def _harmless() -> Generator[None]:
    """What the program's provider, sampler, processor or exporter raises is told once, and stops no work."""
    global _told
    try:
        yield
    except Exception:
        if not _told:
            _log.exception("tracing failed; work goes on without some of its spans")
        _told = True


def tracer() -> Tracer | None:
    """The tracer to make spans with; None while the program has not set up a provider of any."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None or not hasattr(api, "get_tracer_provider"):
        return None
    with _harmless():
        provider = api.get_tracer_provider()
        if provider not in _tracers:
            if type(provider).__name__ in ("ProxyTracerProvider", "NoOpTracerProvider"):  # there is none, or it is off
                return None
            _tracers.clear()
            _tracers[provider] = provider.get_tracer("zart")
        return _tracers[provider]
    _tracers.clear()
    return None


def here() -> str | None:
    """The context of the caller, to be stored with what it starts; None when there is none."""
    if tracer() is None:
        return None
    from opentelemetry import trace

    return traceparent(trace.get_current_span())


def traceparent(span: Span, *, recorded: bool = False) -> str | None:
    """A span's context as text; None of one that belongs to no trace, or, if asked for, that is not recorded."""
    with _harmless():
        context = span.get_span_context()
        if context.is_valid and (span.is_recording() or not recorded):
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return None


def begin_turn(tracer: Tracer, task_name: str, about: _Values, caller: str | None, before: str | None) -> Span | None:
    """The span of a turn, begun; None when that fails.

    Args:
        about: attributes by name, without the "zart." before it.
        caller: traceparent of where the execution was started.
        before: that of the turn before this one.
    """
    from opentelemetry import trace
    from opentelemetry.context import Context

    with _harmless():
        return tracer.start_span(
            f"turn {task_name}",
            Context(),
            trace.SpanKind.CONSUMER,
            _attributes(about),
            [*_links("caller", caller), *_links("turn before", before)],
        )
    return None


def enter(span: Span) -> None:
    """Make a turn's span the one that its body's spans are inside of. Call it in the context of the body."""
    from opentelemetry import context, trace

    with _harmless():
        context.attach(trace.set_span_in_context(span, context.Context()))


def end_turn(span: Span, outcome: str, error: Mapping[str, Any] | None = None) -> None:
    """End a turn's span.

    Args:
        outcome: what became of the turn.
        error: the failure's record, if it has failed.
    """
    with _harmless():
        span.set_attribute("zart.outcome", outcome)
        if error is not None:
            _note_error(span, str(error.get("type")), str(error.get("message")), str(error.get("traceback") or ""))
        span.end()


@contextlib.contextmanager
def step(name: str, about: _Values) -> Generator[None]:
    """A span around one try of a step, inside of whichever is the current one."""
    from opentelemetry import trace

    span: Span | None = None
    with _harmless():
        made = tracer()
        span = None if made is None else made.start_span(f"step {name}", attributes=_attributes(about))
    if span is None:
        yield
        return
    outcome = "interrupted"
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
        outcome = "completed"
    except Exception as error:
        outcome = "failed"
        with _harmless():
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.StatusCode.ERROR, f"{type(error).__qualname__}: {error}")
        raise
    finally:
        with _harmless():
            span.set_attribute("zart.outcome", outcome)
            span.end()


def flush(seconds: float) -> None:
    """Have the provider send what it has, before a process ends that runs no exit handlers.

    Not all of them keep to the time that they are given, so another thread waits for it.
    """
    if tracer() is not None:
        sending = threading.Thread(target=_flush, args=(seconds,), name="zart traces", daemon=True)
        sending.start()
        sending.join(seconds)


def _flush(seconds: float) -> None:
    from opentelemetry import trace

    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):
        with _harmless():
            provider.force_flush(int(seconds * 1000))


def _attributes(about: _Values) -> dict[str, str | int]:
    return {f"zart.{name}": value for name, value in about.items()}


def _links(what: str, text: str | None) -> list[Link]:
    from opentelemetry import trace

    context = _parsed(text)
    return [] if context is None else [trace.Link(context, {"zart.link": what})]


def _parsed(text: str | None) -> SpanContext | None:
    from opentelemetry import trace

    found = _FORM.fullmatch(text or "")
    if found is None:  # or written by somebody else, in another version of the format
        return None
    flags = trace.TraceFlags(int(found["flags"], 16))
    return trace.SpanContext(int(found["trace"], 16), int(found["span"], 16), is_remote=True, trace_flags=flags)


def _note_error(span: Span, kind: str, message: str, stack: str) -> None:
    from opentelemetry import trace

    event = {"exception.type": kind, "exception.message": message, "exception.stacktrace": stack}
    span.add_event("exception", {name: value for name, value in event.items() if value})
    span.set_attribute("error.type", kind)
    span.set_status(trace.StatusCode.ERROR, f"{kind}: {message}")
