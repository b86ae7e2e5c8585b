"""Every metric as a table row, and `Place`: one worker's area of the memory that the runner's processes share.

A place is a row of 64-bit words: a few fields that describe the worker now (their names are the properties of
`Place`), then counters, then histograms. The constants below are offsets of words, so that counting is one addition in
a memoryview. The counters of a worker that died stay: the next worker of that place goes on from them, and sums never
fall.

One process writes a place (the worker itself; the arbiter before the fork and after the death), others only read it,
but for `alone`, by which the supervisor asks for something.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, overload

from zart.codec import Attribution

_FIELDS: Final = (
    "worker_id", "previous_id", "loop_count", "last_tick_ns", "executing", "idle", "held", "draining", "ready", "pid",
    "alone",
)  # fmt: skip
MOST_THREADS: Final = 288
"""For how many threads a place has room to note whose code they run."""

_THREADS: Final = len(_FIELDS)
_STEP: Final = _THREADS + MOST_THREADS  # the length of a name in bytes, then the name
_STEP_BYTES: Final = 512
_COUNTERS: Final = _STEP + 1 + _STEP_BYTES // 8


# Place.alone
ASKED: Final = 1
ALONE: Final = 2


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter: its offset in a place, its name as exported, and what it counts."""

    offset: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """One histogram: the offset of its first bucket, its name as exported (seconds), and what it measures."""

    offset: int
    name: str
    text: str


EXECUTIONS_CLAIMED: Final = _COUNTERS + 0
EXECUTIONS_COMPLETED: Final = _COUNTERS + 1
EXECUTIONS_FAILED: Final = _COUNTERS + 2
EXECUTIONS_PUT_OFF: Final = _COUNTERS + 3
STEPS_COMPLETED: Final = _COUNTERS + 4
STEPS_FAILED: Final = _COUNTERS + 5
STEPS_REPLAYED: Final = _COUNTERS + 6
STEP_RETRIES: Final = _COUNTERS + 7
TICKS: Final = _COUNTERS + 8
TICK_ROWS: Final = _COUNTERS + 9
CLAIMS_LOST: Final = _COUNTERS + 10
PARKED: Final = _COUNTERS + 11
CRASH_RESUMED: Final = _COUNTERS + 12
RECONNECTS: Final = _COUNTERS + 13
DATABASE_ERRORS: Final = _COUNTERS + 14

COUNTERS: Final = (
    Counter(EXECUTIONS_CLAIMED, "zart_executions_claimed_total", "claims taken, resumed ones too"),
    Counter(EXECUTIONS_COMPLETED, "zart_executions_completed_total", "executions that ended with a result"),
    Counter(EXECUTIONS_FAILED, "zart_executions_failed_total", "executions that ended without a result"),
    Counter(EXECUTIONS_PUT_OFF, "zart_executions_put_off_total", "claims handed back to run again later"),
    Counter(STEPS_COMPLETED, "zart_steps_completed_total", "steps whose result was kept"),
    Counter(STEPS_FAILED, "zart_steps_failed_total", "steps that ended in failure"),
    Counter(STEPS_REPLAYED, "zart_steps_replayed_total", "steps answered from the journal"),
    Counter(STEP_RETRIES, "zart_step_retries_total", "tries of a step that failed and were followed by another"),
    Counter(TICKS, "zart_ticks_total", "group commits"),
    Counter(TICK_ROWS, "zart_tick_rows_total", "checkpoints and endings that group commits carried"),
    Counter(CLAIMS_LOST, "zart_claims_lost_total", "turns dropped because their claim was gone"),
    Counter(PARKED, "zart_executions_parked_total", "executions put down until a time or a signal"),
    Counter(CRASH_RESUMED, "zart_executions_resumed_total", "claims of executions that had been claimed before"),
    Counter(RECONNECTS, "zart_reconnects_total", "connections made again after one was lost"),
    Counter(DATABASE_ERRORS, "zart_database_errors_total", "statements and connections that failed"),
)

# Eight bounds per decade from 100 us to 1000 s, each 1.33 times the one before: a quantile is off by 15 % at most.
BOUNDS: Final = tuple(1e-4 * 10 ** (step / 8) for step in range(57))
_BUCKETS: Final = len(BOUNDS) + 1  # the last one holds what is over every bound
_SUM: Final = _BUCKETS  # after the buckets, the sum of all observations in nanoseconds
_HISTOGRAM_WORDS: Final = _BUCKETS + 1
_HISTOGRAMS: Final = _COUNTERS + len(COUNTERS)

CLAIM_LATENCY: Final = _HISTOGRAMS
TICK_DURATION: Final = _HISTOGRAMS + _HISTOGRAM_WORDS
EXECUTION_DURATION: Final = _HISTOGRAMS + 2 * _HISTOGRAM_WORDS

HISTOGRAMS: Final = (
    Histogram(CLAIM_LATENCY, "zart_claim_latency_seconds", "from when an execution could run to its claim"),
    Histogram(TICK_DURATION, "zart_tick_duration_seconds", "one group commit, there and back"),
    Histogram(EXECUTION_DURATION, "zart_execution_duration_seconds", "from the start of an execution to its end"),
)

_WORDS: Final = -(-(_HISTOGRAMS + len(HISTOGRAMS) * _HISTOGRAM_WORDS) // 8) * 8  # whole cache lines


class _Word:
    """A property over one word of a place."""

    __slots__ = ("_offset",)

    def __init__(self, offset: int) -> None:
        self._offset = offset

    @overload
    def __get__(self, place: None, owner: type[Place]) -> _Word: ...
    @overload
    def __get__(self, place: Place, owner: type[Place]) -> int: ...
    def __get__(self, place: Place | None, owner: type[Place]) -> _Word | int:
        return self if place is None else place.words[self._offset]

    def __set__(self, place: Place, value: int) -> None:
        place.words[self._offset] = value


class Place:
    """One worker's words.

    Args:
        buffer: writable memory of `Place.size()` bytes, aligned to 8.

    Attributes:
        words: the memory as signed 64-bit integers, for code that counts often.
        worker_id: id under which the worker ticks, 0 when the place is empty.
        previous_id: its id before a change of identity that may not have been completed, else 0.
        loop_count: rises while the worker's event loop runs.
        last_tick_ns: `time.monotonic_ns()` of its last answer from the database.
        executing: numeric id of the execution whose code the event loop runs at this moment, else 0.
        idle: 1 when it holds nothing and its last claim found nothing.
        held: how many claims it holds.
        draining: 1 from `stop()` on, and when the worker ends by itself.
        ready: 1 once it is registered and may claim.
        pid: its process, 0 when the place is empty.
        alone: ASKED while it is to make itself empty for work that is set apart, ALONE while it runs some, else 0.
    """

    __slots__ = ("words",)

    worker_id = _Word(_FIELDS.index("worker_id"))
    previous_id = _Word(_FIELDS.index("previous_id"))
    loop_count = _Word(_FIELDS.index("loop_count"))
    last_tick_ns = _Word(_FIELDS.index("last_tick_ns"))
    executing = _Word(_FIELDS.index("executing"))
    idle = _Word(_FIELDS.index("idle"))
    held = _Word(_FIELDS.index("held"))
    draining = _Word(_FIELDS.index("draining"))
    ready = _Word(_FIELDS.index("ready"))
    pid = _Word(_FIELDS.index("pid"))
    alone = _Word(_FIELDS.index("alone"))

    def __init__(self, buffer: memoryview | bytearray) -> None:
        self.words: memoryview[int] = memoryview(buffer).cast("B").cast("q")
        if len(self.words) != _WORDS:
            raise ValueError(f"a place needs {_WORDS * 8} bytes, got {len(self.words) * 8}")

    @staticmethod
    def size() -> int:
        """Bytes of one place."""
        return _WORDS * 8

    @classmethod
    def private(cls) -> Place:
        """A place in this process's own memory, for a worker without a runner."""
        return cls(bytearray(_WORDS * 8))

    def attribution(self) -> Attribution:
        """What writes `executing`."""
        return Attribution(self.words, _FIELDS.index("executing"))

    def add(self, counter: int, n: int = 1) -> None:
        """Count `n` more."""
        self.words[counter] += n

    def observe(self, histogram: int, seconds: float) -> None:
        """Note one duration; a negative one (clocks differ) counts as 0."""
        words = self.words
        words[histogram + bisect_left(BOUNDS, seconds)] += 1
        if seconds > 0:
            words[histogram + _SUM] += int(seconds * 1e9)

    def note_thread(self, index: int, claim_id: int) -> None:
        """Note whose code a thread runs from here on, 0 for nobody's. Each thread has an index below MOST_THREADS."""
        self.words[_THREADS + index] = claim_id

    def running(self) -> list[int]:
        """Executions whose code runs at this moment, on the loop or in threads."""
        noted = (self.executing, *self.words[_THREADS : _THREADS + MOST_THREADS])
        return sorted({claim_id for claim_id in noted if claim_id})

    @property
    def step(self) -> str:
        """The step begun last by an execution that was set apart, as `note_step` left it."""
        return bytes(self._step_bytes()[: self.words[_STEP]]).decode("utf-8", "replace")

    def note_step(self, name: str) -> None:
        """Note the step that begins; too slow to do it for every execution."""
        data = name.encode()[:_STEP_BYTES]
        self._step_bytes()[: len(data)] = data
        self.words[_STEP] = len(data)

    def _step_bytes(self) -> memoryview[int]:
        return self.words[_STEP + 1 : _COUNTERS].cast("B")

    def leave(self) -> None:
        """The worker ends by itself: nothing that still runs is the cause."""
        self.draining, self.executing = 1, 0
        for offset in range(_THREADS, _STEP):
            self.words[offset] = 0

    def clear(self) -> None:
        """Forget the worker; its counters and histograms stay."""
        for offset in range(_COUNTERS):
            self.words[offset] = 0


def total(places: Iterable[Place], counter: int) -> int:
    """A counter's sum over places."""
    return sum(place.words[counter] for place in places)


def merged(places: Iterable[Place], histogram: int) -> list[int]:
    """A histogram's buckets summed over places: how many observations fell at or under each of `BOUNDS`, then over."""
    sums = [0] * _BUCKETS
    for place in places:
        for bucket, count in enumerate(place.words[histogram : histogram + _BUCKETS]):
            sums[bucket] += count
    return sums


def seconds_observed(places: Iterable[Place], histogram: int) -> float:
    """Sum of all that a histogram observed, over places, in seconds."""
    return sum(place.words[histogram + _SUM] for place in places) / 1e9


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The value that a share `q` (0 to 1) of the observations does not exceed, in seconds; None without observations.

    Args:
        buckets: as `merged` gives them; differences of two such lists work too.
    """
    wanted = q * sum(buckets)
    if not sum(buckets):
        return None
    seen = 0
    for bucket, count in enumerate(buckets):
        if count and seen + count >= wanted:
            if bucket == len(BOUNDS):
                return BOUNDS[-1]
            low = BOUNDS[bucket - 1] if bucket else 0.0
            return low + (BOUNDS[bucket] - low) * (wanted - seen) / count
        seen += count
    return BOUNDS[-1]
