"""What a place counts per task: a row of words for each task name, found again by that name.

A row belongs to its name for good: the next worker of the place goes on with it, so what it counts never falls. The row
before all others takes the tasks for which there is no room. A tally is the distance of a task's row from that one, so
`words[tally + EXECUTIONS_CLAIMED] += 1` counts for a task.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Final

from zart.names import MAX_NAME_BYTES

ROWS_START: Final = 1024
"""Words of a place that are before the rows: whole pages, and those of rows that nobody uses cost nothing."""
ROW_WORDS: Final = 52
MOST_TASKS: Final = 64
OTHER: Final = "other"

_KNOWN: Final = ROWS_START - 1  # how many names there are
_ROWS: Final = MOST_TASKS + 1
_NAMES: Final = ROWS_START + _ROWS * ROW_WORDS
_NAME_WORDS: Final = 2 + MAX_NAME_BYTES // 8  # since when, how many bytes, the bytes
END: Final = -(-(_NAMES + MOST_TASKS * _NAME_WORDS) // 512) * 512
"""Words of a place, whole pages."""


def rows_end(words: memoryview[int]) -> int:
    """Where the rows in use end."""
    return ROWS_START + (1 + words[_KNOWN]) * ROW_WORDS


def tally_of(words: memoryview[int], task_name: str) -> int:
    """The tally of a task, which gets a row if it has none and there is room."""
    names = [name for _, name in named_rows(words)]
    if task_name in names:
        return (1 + names.index(task_name)) * ROW_WORDS
    if task_name == OTHER or len(names) == MOST_TASKS:
        return 0
    data, at = task_name.encode()[:MAX_NAME_BYTES], _NAMES + len(names) * _NAME_WORDS
    words[at], words[at + 1] = monotonic_ns(), len(data)
    words[at + 2 : at + _NAME_WORDS].cast("B")[: len(data)] = data
    words[_KNOWN] += 1  # last: readers, and whoever follows if this process dies here, go by it
    return (1 + len(names)) * ROW_WORDS


def named_rows(words: memoryview[int], first: int = 0) -> list[tuple[int, str]]:
    """The names of a place in the order of their rows, from one of them on, each with when it came (monotonic ns)."""
    found: list[tuple[int, str]] = []
    for at in range(_NAMES + first * _NAME_WORDS, _NAMES + words[_KNOWN] * _NAME_WORDS, _NAME_WORDS):
        data = words[at + 2 : at + _NAME_WORDS].cast("B")[: words[at + 1]]
        found.append((words[at], bytes(data).decode("utf-8", "replace")))
    return found
