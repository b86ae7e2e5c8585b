"""What one drain took: the timed part of a measurement, by the floor or by the engine."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cpu import CpuTimes


@dataclass(frozen=True, slots=True)
class Ticks:
    """What the engine's workers counted.

    Args:
        ticks: group commits.
        rows: checkpoints and endings that they carried.
        duration_p50: seconds of one group commit.
        claim_latency_p50, claim_latency_p99: seconds from when an execution could run to its claim. All executions are
            there before the first worker, so this is the time that they queued.
    """

    ticks: int
    rows: int
    duration_p50: float | None
    claim_latency_p50: float | None
    claim_latency_p99: float | None


@dataclass(frozen=True, slots=True)
class Drain:
    """From the first claim to the last completion.

    Args:
        seconds: how long that was.
        cpu: what it used of the processors.
        ticks: None for the floor, which has none.
    """

    seconds: float
    cpu: CpuTimes
    ticks: Ticks | None = None
