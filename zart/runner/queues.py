"""The figures of the queues for Prometheus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from zart.engine.sampling import Sampler
from zart.store.figures import QueueFigures

MOST_QUEUES: Final = 64
OTHER: Final = "other"

STATES: Final = ("ready", "running", "waiting", "expired", "quarantined", "unclaimable")


class QueueCollector(Collector):
    """Collects the last sample, or nothing while there is none: then another process exports the figures."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def collect(self) -> Iterator[Metric]:
        sample = self._sampler.sample
        if sample is None:
            return
        executions = GaugeMetricFamily(
            "zart_queue_executions",
            "Unfinished and quarantined executions",
            labels=("queue", "state"),
        )
        oldest = GaugeMetricFamily(
            "zart_queue_oldest_ready_seconds",
            "For how long the oldest ready execution of a queue could have run, 0 without one",
            labels=("queue",),
        )
        for queue, figures in _bounded(sample.queues).items():
            counts = dataclasses.asdict(figures)
            for state in STATES:
                executions.add_metric((queue, state), counts[state])
            oldest.add_metric((queue,), figures.oldest_ready)
        yield executions
        yield oldest
        yield GaugeMetricFamily(
            "zart_queue_sample_age_seconds", "How long ago the figures of the queues were taken", sample.age
        )
        yield GaugeMetricFamily(
            "zart_queue_sample_duration_seconds", "How long it took to take the figures of the queues", sample.seconds
        )


def _bounded(queues: Mapping[str, QueueFigures]) -> dict[str, QueueFigures]:
    """As many queues as may be labels, the oldest ones, and one for all others."""
    if len(queues) <= MOST_QUEUES:
        return dict(queues)
    named = list(queues)[:MOST_QUEUES]
    bounded = {name: queues[name] for name in named}
    for name in list(queues)[MOST_QUEUES:]:
        bounded[OTHER] = bounded.get(OTHER, QueueFigures()) + queues[name]
    return bounded
