"""What `zart top` shows of two scrapes, one after the other."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zart.cli.command import one_line
from zart.cli.scrape import Scrape, quantile
from zart.runner.queues import STATES

_MOST_QUEUES = 20
_ELSEWHERE = "queues: their figures are on the page of another runner, or the database is away"
_ERRORS = (
    ("worker deaths", "zart_worker_deaths_total"),
    ("claims lost", "zart_claims_lost_total"),
    ("database errors", "zart_database_errors_total"),
    ("reconnects", "zart_reconnects_total"),
)


def drawn(page: str, before: Scrape, now: Scrape) -> RenderableType:
    """One frame: rates are those between the two scrapes."""
    parts: list[RenderableType] = [Text(f"zart top  {one_line(page)}", style="bold"), Text()]
    if now.has("zart_slots"):
        parts += [_fleet(before, now), Text()]
    parts.append(_queues(now) if now.has("zart_queue_executions") else Text(_ELSEWHERE))
    return Group(*parts)


def _fleet(before: Scrape, now: Scrape) -> Table:
    """What the runner does."""
    seconds = max(now.at - before.at, 1e-3)

    def rate(name: str, **labels: str) -> float:
        return max(0.0, now.total(name, **labels) - before.total(name, **labels)) / seconds

    def ended(name: str) -> str:
        return f"{rate(name):,.1f}/s, {rate(name, outcome='failed'):,.1f}/s failed"

    latency = before.buckets("zart_claim_latency_seconds"), now.buckets("zart_claim_latency_seconds")
    table = Table.grid(padding=(0, 2))
    for title, text in (
        ("executions", ended("zart_executions_ended_total")),
        ("steps", f"{ended('zart_steps_ended_total')}, {rate('zart_step_retries_total'):,.1f}/s tried again"),
        ("claim latency", f"p50 {_brief(quantile(0.5, *latency))}, p99 {_brief(quantile(0.99, *latency))}"),
        ("in flight", f"{now.total('zart_executions_in_flight'):,.0f} of {now.total('zart_slots'):,.0f} slots"),
        ("workers", ", ".join(f"{count:.0f} {state}" for state, count in now.by("zart_workers", "state").items())),
        ("errors", ", ".join(f"{now.total(name):,.0f} {what}" for what, name in _ERRORS)),
    ):
        table.add_row(Text(title, style="bold"), Text(text))
    return table


def _queues(now: Scrape) -> Table:
    """How the queues stand, those whose oldest ready execution waits for longest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("queue", overflow="fold")
    for title in ("oldest", *STATES):
        table.add_column(title, justify="right", no_wrap=True)
    oldest = now.by("zart_queue_oldest_ready_seconds", "queue")
    for queue in sorted(oldest, key=lambda name: -oldest[name])[:_MOST_QUEUES]:
        counts = now.by("zart_queue_executions", "state", queue=queue)
        cells = [_brief(oldest[queue] or None), *(f"{counts.get(state, 0):,.0f}" for state in STATES)]
        table.add_row(Text(one_line(queue)), *cells)
    if len(oldest) > _MOST_QUEUES:
        table.add_row(Text(f"and {len(oldest) - _MOST_QUEUES:,} more"))
    table.caption_justify = "left"
    table.caption = Text(f"as of {now.total('zart_queue_sample_age_seconds'):.0f} s ago")
    return table


def _brief(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
