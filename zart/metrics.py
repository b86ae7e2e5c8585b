"""`Place`: one worker's area of the memory that the runner's processes share; and sums over places.

A place is a row of 64-bit words: a few fields that describe the worker now (their names are the properties of
`Place`), then the counters and histograms of `zart.meters`, then the same per task (see `zart.tally`). The counters of
a worker that died stay: the next worker of that place goes on from them, and sums never fall.

One process writes a place (the worker itself; the arbiter before the fork and after the death), others only read it,
but for `alone`, by which the supervisor asks for something.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, overload

from zart.codec import Attribution
from zart.meters import BOUNDS, START, Histogram
from zart.tally import END, ROW_WORDS, ROWS_START, rows_end, tally_of

_FIELDS: Final = (
    "worker_id", "previous_id", "loop_count", "last_tick_ns", "executing", "idle", "held", "draining", "ready", "pid",
    "alone", "slots",
)  # fmt: skip
MOST_THREADS: Final = 288
"""For how many threads a place has room to note whose code they run."""

_THREADS: Final = len(_FIELDS)
_STEP: Final = _THREADS + MOST_THREADS  # the length of a name in bytes, then the name
_STEP_BYTES: Final = 512
assert _STEP + 1 + _STEP_BYTES // 8 <= START


# Place.loop_count
LEFT: Final = -1
"""It drained: what its process still does takes as long as it may."""

# Place.alone
ASKED: Final = 1
ALONE: Final = 2


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


_MOST: Final = 2**63 - 1
_LONGEST: Final = 1e12  # seconds
_FEW: Final = 16  # values; below it, to find the bucket of each costs less than to go through the bounds


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
        slots: how many claims it may hold.
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
    slots = _Word(_FIELDS.index("slots"))

    def __init__(self, buffer: memoryview | bytearray) -> None:
        self.words: memoryview[int] = memoryview(buffer).cast("B").cast("q")
        if len(self.words) != END:
            raise ValueError(f"a place needs {END * 8} bytes, got {len(self.words) * 8}")

    @staticmethod
    def size() -> int:
        """Bytes of one place."""
        return END * 8

    @classmethod
    def private(cls) -> Place:
        """A place in this process's own memory, for a worker without a runner."""
        return cls(bytearray(END * 8))

    def attribution(self) -> Attribution:
        """What writes `executing`."""
        return Attribution(self.words, _FIELDS.index("executing"))

    def add(self, counter: int, n: int = 1) -> None:
        """Count `n` more."""
        self.words[counter] += n

    def observe(self, histogram: Histogram, value: float, tally: int = 0) -> None:
        """Note one duration in seconds, or one size; a negative one (clocks differ) counts as 0."""
        words, at = self.words, tally + histogram.offset
        words[at + bisect_left(histogram.bounds, value)] += 1
        self._add_to_sum(histogram, value, tally)

    def tally_of(self, task_name: str) -> int:
        """What to add to the offsets of a task's counters and histograms."""
        return tally_of(self.words, task_name)

    def observe_all(self, histogram: Histogram, values: list[float], tally: int = 0) -> None:
        """As `observe` for each value; of many, a fraction of the cost. They are sorted."""
        if len(values) < _FEW:
            for value in values:
                self.observe(histogram, value, tally)
            return
        words, counted = self.words, 0
        values.sort()
        self._add_to_sum(histogram, sum(value for value in values if value > 0), tally)
        for bucket, bound in enumerate(histogram.bounds, tally + histogram.offset):
            reached = bisect_right(values, bound)
            if reached > counted:
                words[bucket] += reached - counted
                counted = reached
        words[tally + histogram.sum_at - 1] += len(values) - counted

    def _add_to_sum(self, histogram: Histogram, value: float, tally: int) -> None:
        """Never more than fits: what sleeps for years, many times over, must not stop who counts it."""
        if value > 0:
            at = tally + histogram.sum_at
            self.words[at] = min(self.words[at] + int(min(value, _LONGEST) / histogram.unit), _MOST)

    def count_all(self, counter: int, histogram: Histogram, seconds: list[float], tally: int) -> None:
        """Count what is committed of a task, and how long each took."""
        self.words[tally + counter] += len(seconds)
        self.observe_all(histogram, seconds, tally)

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
        return self.words[_STEP + 1 : _STEP + 1 + _STEP_BYTES // 8].cast("B")

    def leave(self) -> None:
        """The worker ends by itself: nothing that still runs is the cause."""
        self.draining, self.executing = 1, 0
        for offset in range(_THREADS, _STEP):
            self.words[offset] = 0

    def clear(self) -> None:
        """Forget the worker; its counters and histograms stay."""
        for offset in range(START):
            self.words[offset] = 0


def total(places: Iterable[Place], counter: int) -> int:
    """A counter's sum over places, and over their tasks if it is counted for each."""
    return sum(sum(place.words[counter : _end(place, counter) : ROW_WORDS]) for place in places)


def merged(places: Iterable[Place], histogram: Histogram) -> list[int]:
    """A histogram's buckets summed over places, and over their tasks: how many observations fell at or under each of
    its bounds, then over."""
    sums = [0] * (len(histogram.bounds) + 1)
    for place in places:
        for at in range(histogram.offset, _end(place, histogram.offset), ROW_WORDS):
            for bucket, count in enumerate(place.words[at : at + len(sums)]):
                sums[bucket] += count
    return sums


def observed(places: Iterable[Place], histogram: Histogram) -> float:
    """Sum of all that a histogram observed, over places, in seconds or as it is counted."""
    return total(places, histogram.sum_at) * histogram.unit


def _end(place: Place, offset: int) -> int:
    return offset + 1 if offset < ROWS_START else rows_end(place.words)


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The value that a share `q` (0 to 1) of the observations does not exceed, in seconds; None without observations.

    Args:
        buckets: as `merged` gives them of a histogram with `BOUNDS`; differences of two such lists work too.
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
