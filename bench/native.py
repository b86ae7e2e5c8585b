"""The native module's share of a worker's time: its calls in one five-step execution, timed one by one.

Nothing runs under load here: the sum is set against the worker's processor time per execution that
`python -m bench run five-step` prints.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import cast

from bench.workflows import receipt
from zart._fastpath import Attribution, encode_plain, step_key

STEPS = 5
# A body is resumed once to begin and once after each step's commit.
RESUMPTIONS = STEPS + 1
_ROUNDS = 40_000


@dataclass(frozen=True, slots=True)
class Part:
    """One native call: how often a five-step execution makes it, and how long it takes."""

    name: str
    calls: int
    nanoseconds: float

    @property
    def microseconds(self) -> float:
        """In one execution."""
        return self.calls * self.nanoseconds / 1000


def parts() -> list[Part]:
    """The native calls of one five-step execution."""
    result, words = receipt(17, 3), memoryview(bytearray(64)).cast("q")
    bare, endless = _endless(), cast("Coroutine[None, None, None]", _endless())
    wrapped = Attribution(words, 1).wrap(endless, 7)
    return [
        Part("encode_plain of a step's result", STEPS, _time(lambda: encode_plain(result))),
        Part("step_key", STEPS, _time(lambda: step_key(0, "reserve-items"))),
        Part("Attribution, one resumption", RESUMPTIONS, _time(lambda: wrapped.send(None), lambda: bare.send(None))),
        Part("encode_plain of the output", 1, _time(lambda: encode_plain(17))),
    ]


def _endless() -> Generator[None, None, None]:
    while True:
        yield


def _time(call: Callable[[], object], without: Callable[[], object] = lambda: None) -> float:
    """Nanoseconds of one call beyond those of another one, each the best of many, in turns, as machines drift."""
    best = [float("inf"), float("inf")]
    for _ in range(25):
        for index, timed in enumerate((call, without)):
            best[index] = min(best[index], timeit.timeit(timed, number=_ROUNDS))
    return (best[0] - best[1]) / _ROUNDS * 1e9
