"""One page of metrics, as values to ask for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a page said, and when it was fetched by `time.monotonic()`."""

    values: Mapping[str, Mapping[Labels, float]]
    at: float = field(default_factory=time.monotonic)

    def has(self, name: str) -> bool:
        """Whether the page has this metric."""
        return name in self.values

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a metric that have these labels."""
        wanted = set(labels.items())
        return math.fsum(value for found, value in self.values.get(name, {}).items() if wanted <= set(found))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Such sums by the values of one label, in the page's order."""
        wanted, sums = set(labels.items()), dict[str, float]()
        for found, value in self.values.get(name, {}).items():
            if wanted <= set(found):
                key = dict(found).get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram's cumulative counts by upper bound, over all its series."""
        return {float(bound): count for bound, count in self.by(f"{name}_bucket", "le").items()}


def parse(text: str) -> Scrape:
    """A page in Prometheus' text format.

    Raises:
        ValueError: it is none, or empty.
    """
    values: dict[str, dict[Labels, float]] = {}
    for name, labels, value in _samples(text):
        values.setdefault(name, {})[labels] = value
    if not values:
        raise ValueError("a page without metrics")
    return Scrape(values)


def _samples(text: str) -> Iterator[tuple[str, Labels, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, tuple(sample.labels.items()), sample.value


def quantile(q: float, before: Mapping[float, float], now: Mapping[float, float]) -> float | None:
    """The value that a share `q` of what was observed between two scrapes does not exceed; None when nothing was."""
    counts = sorted((bound, count - before.get(bound, 0.0)) for bound, count in now.items())
    if not counts or counts[-1][1] <= 0:
        return None
    wanted, low, seen = q * counts[-1][1], 0.0, 0.0
    for bound, count in counts:
        if count >= wanted and count > seen:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - seen) / (count - seen)
        low, seen = (low if math.isinf(bound) else bound), count
    return low
