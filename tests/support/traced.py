"""An application whose spans go to the file `SPANS`, one JSON object per line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from zart import TaskRegistry, zart_durable, zart_step


class _ToFile(SpanExporter):
    def __init__(self, suffix: str) -> None:
        self.path = Path(os.environ["SPANS"] + suffix)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self.path.open("a") as file:
            file.writelines(json.dumps(_told(span)) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


def _told(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "name": span.name,
        "pid": os.getpid(),
        "context": _id(span.context),
        "parent": span.parent and _id(span.parent),
        "attributes": dict(span.attributes or {}),
        "links": {str((link.attributes or {})["zart.link"]): _id(link.context) for link in span.links},
    }


def _id(context: trace.SpanContext) -> str:
    return f"{context.trace_id:032x}-{context.span_id:016x}"


@zart_step("first")
async def first() -> int:
    return 1


@zart_step("second")
async def second() -> int:
    """Ends only when it is begun for the second time."""
    if _is_the_first():
        await asyncio.Event().wait()
    return 2


def _is_the_first() -> bool:
    try:
        Path(os.environ["SPANS"] + ".begun").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@zart_durable("killed-once")
async def killed_once() -> int:
    return await first() + await second()


@asynccontextmanager
async def _traced() -> AsyncGenerator[None]:
    """Exports at once, and keeps some back in a batch: the runner has that sent when a worker ends."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_ToFile("")))
    provider.add_span_processor(BatchSpanProcessor(_ToFile(".batched"), schedule_delay_millis=3_600_000))
    trace.set_tracer_provider(provider)
    yield


registry = TaskRegistry(lifespan=_traced)
registry.register_module(sys.modules[__name__])
