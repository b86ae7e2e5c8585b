"""Every metric that a worker counts as a table row: where its place keeps it, what it is called, what it means.

The constants are offsets of words in a place, or have one, so that counting is one addition in a memoryview.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zart.tally import ROWS_START

START: Final = 384
"""Words of a place that are before these: what tells how its worker is now."""


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter: its offset, its name as exported, what it counts, and the label that tells it from others of its
    name. Those of tasks are in the row of the others: a tally is added to the offset."""

    offset: int
    name: str
    text: str
    label: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """One histogram: the offset of its first bucket, its name as exported, what it measures, and its bounds.

    After a bucket for each bound (at or under it) and one for what is over them all comes the sum, in `unit`s.
    """

    offset: int
    name: str
    text: str
    bounds: tuple[float, ...]
    unit: float = 1e-6

    @property
    def sum_at(self) -> int:
        """The offset of the sum."""
        return self.offset + len(self.bounds) + 1

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.sum_at + 1


# Of a worker as a whole
TICKS: Final = START
"""Group commits: by it the supervisor sees whom it need not wake."""
CLAIMS_LOST: Final = START + 1
DATABASE_ERRORS: Final = START + 2
RECONNECTS: Final = START + 3
BYTES_READ: Final = START + 4
BYTES_WRITTEN: Final = START + 5

COUNTERS: Final = (
    Counter(CLAIMS_LOST, "zart_claims_lost_total", "turns dropped because their claim was gone"),
    Counter(DATABASE_ERRORS, "zart_database_errors_total", "statements and connections of workers that failed"),
    Counter(RECONNECTS, "zart_reconnects_total", "connections of workers made again after one was lost"),
    Counter(BYTES_READ, "zart_payload_bytes_total", "JSON of inputs, results and errors", ("direction", "read")),
    Counter(BYTES_WRITTEN, "zart_payload_bytes_total", "JSON of inputs, results and errors", ("direction", "written")),
)

# Eight bounds per decade from 100 us to 1000 s, each 1.33 times the one before: a quantile is off by 15 % at most.
BOUNDS: Final = tuple(float(f"{1e-4 * 10 ** (step / 8):.3g}") for step in range(57))
_SIZES: Final = (0.0, *(float(2**power) for power in range(13)))

CLAIM_LATENCY: Final = Histogram(
    START + 6, "zart_claim_latency_seconds", "from when an execution could run to its claim", BOUNDS
)
TICK_DURATION: Final = Histogram(
    CLAIM_LATENCY.end, "zart_tick_duration_seconds", "one group commit, there and back", BOUNDS
)
LOOP_LAG: Final = Histogram(
    TICK_DURATION.end, "zart_loop_lag_seconds", "how late a worker's event loop comes to its heartbeat", BOUNDS
)
CLAIM_BATCH_SIZE: Final = Histogram(
    LOOP_LAG.end, "zart_claim_batch_size", "executions that one tick claimed, of those that asked for any", _SIZES, 1
)
TICK_ROWS: Final = Histogram(
    CLAIM_BATCH_SIZE.end, "zart_tick_rows", "checkpoints, endings and children that one tick carried", _SIZES, 1
)
HISTOGRAMS: Final = (CLAIM_LATENCY, TICK_DURATION, LOOP_LAG, CLAIM_BATCH_SIZE, TICK_ROWS)

# Of a task
EXECUTIONS_CLAIMED: Final = ROWS_START
EXECUTIONS_RESUMED: Final = ROWS_START + 1
EXECUTIONS_COMPLETED: Final = ROWS_START + 2
EXECUTIONS_FAILED: Final = ROWS_START + 3
EXECUTIONS_RETRIED: Final = ROWS_START + 4
EXECUTIONS_PARKED: Final = ROWS_START + 5
EXECUTIONS_PUT_OFF: Final = ROWS_START + 6
STEPS_COMPLETED: Final = ROWS_START + 7
STEPS_FAILED: Final = ROWS_START + 8
STEPS_REPLAYED: Final = ROWS_START + 9
STEP_RETRIES: Final = ROWS_START + 10

_EXECUTIONS_ENDED: Final = "executions whose ending is committed, those that were cancelled left out"
_STEPS_ENDED: Final = "steps whose last try is committed"
TASK_COUNTERS: Final = (
    Counter(EXECUTIONS_CLAIMED, "zart_executions_claimed_total", "claims taken, resumed ones too"),
    Counter(EXECUTIONS_RESUMED, "zart_executions_resumed_total", "claims of executions that had been claimed before"),
    Counter(EXECUTIONS_COMPLETED, "zart_executions_ended_total", _EXECUTIONS_ENDED, ("outcome", "completed")),
    Counter(EXECUTIONS_FAILED, "zart_executions_ended_total", _EXECUTIONS_ENDED, ("outcome", "failed")),
    Counter(EXECUTIONS_RETRIED, "zart_executions_retried_total", "executions that failed and run again from the top"),
    Counter(EXECUTIONS_PARKED, "zart_executions_parked_total", "executions put down until a time or a signal"),
    Counter(EXECUTIONS_PUT_OFF, "zart_executions_put_off_total", "claims handed back, to go on in another turn"),
    Counter(STEPS_COMPLETED, "zart_steps_ended_total", _STEPS_ENDED, ("outcome", "completed")),
    Counter(STEPS_FAILED, "zart_steps_ended_total", _STEPS_ENDED, ("outcome", "failed")),
    Counter(STEPS_REPLAYED, "zart_steps_replayed_total", "steps answered from the journal"),
    Counter(STEP_RETRIES, "zart_step_retries_total", "tries of a step that failed and were followed by another"),
)

_LONG: Final = tuple(
    float(f"{digit}e{power}") for power in range(-3, 5) for digit in (1, 3)
)  # two per decade, 1 ms to 8 h
EXECUTION_DURATION: Final = Histogram(
    ROWS_START + len(TASK_COUNTERS),
    "zart_execution_duration_seconds",
    "from the start of an execution to its end",
    _LONG,
)
STEP_DURATION: Final = Histogram(
    EXECUTION_DURATION.end, "zart_step_duration_seconds", "one try of a step, whatever came of it", _LONG
)
TASK_HISTOGRAMS: Final = (EXECUTION_DURATION, STEP_DURATION)
