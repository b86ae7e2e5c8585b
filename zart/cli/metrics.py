"""`zart metrics`: the figures of the queues for Prometheus, where no runner may be at work."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import signal
import socket
from collections.abc import Iterator
from typing import Annotated, Final

import typer
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import zart
from zart.cli.database import DatabaseUrl, Embedded, Schema, SchemaDefault, opened
from zart.cli.runner import LogFormat
from zart.engine.sampling import Sampler
from zart.log import logger
from zart.postgres.connection import connect
from zart.runner.listener import DEFAULT_HOST, DEFAULT_PORT, MAX_PORT, listen, url_of
from zart.runner.probes import Check
from zart.runner.queues import QueueCollector
from zart.runner.rendering import render_logs
from zart.store.migrate import check_schema

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)

_log = logger("metrics")


class _BuildCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        labels = {"version": zart.__version__, "python": platform.python_version()}
        build = GaugeMetricFamily("zart_build_info", "This zart.", labels=tuple(labels))
        build.add_metric(tuple(labels.values()), 1)
        yield build


def metrics(
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=MAX_PORT, help="0 takes a free one, which the log names.")
    ] = DEFAULT_PORT,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 is everywhere.")] = DEFAULT_HOST,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines for people or for machines.")] = LogFormat.CONSOLE,
) -> None:
    """Serve the figures of all queues, with no worker at work: for autoscaling from zero.

    Pages: /metrics, /livez (this process), /readyz (the database). Runs until SIGTERM or SIGINT.

    Example: zart metrics --port 9464 --database-url postgresql://zart@db/app
    """
    with listen(host, port, host_option="--host", port_option="--port") as listener:
        render_logs(log_format.value)
        with opened(database_url, embedded, schema, makes_data=False) as dsn:
            asyncio.run(_serve(listener, dsn, schema))


async def _serve(listener: socket.socket, dsn: str, schema: str) -> None:
    from zart.runner.endpoint import Endpoint  # it takes a while, and no other command needs it

    await _check_database(dsn, schema)
    stop = asyncio.Event()
    for number in _STOPPING:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sampler = Sampler(dsn, schema, elected=False)
    endpoint = Endpoint(
        [QueueCollector(sampler), _BuildCollector()],
        {"/livez": lambda: [Check("metrics")], "/readyz": lambda: [Check("database", sampler.fault)]},
    )
    async with endpoint.serving(listener):
        _log.info("metrics and health on %s", url_of(listener))
        sampling = asyncio.create_task(sampler.run())
        await stop.wait()
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling
    _log.info("stopped")


async def _check_database(dsn: str, schema: str) -> None:
    """What cannot work at the start is a mistake, and not an outage."""
    connection = await connect(dsn, application_name="zart metrics")
    try:
        await check_schema(connection, schema)
    finally:
        await connection.close()
