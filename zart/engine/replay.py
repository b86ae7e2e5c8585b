"""What the journal says of one run: a hit, a miss, or a contradiction. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zart.errors import StepDiverged
from zart.model import Kind


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One stored journal row. `result` and `error` are JSON text; `due_in` is seconds from the load."""

    kind: int
    status: int
    name: str
    attempts: int
    result: str | None
    error: str | None
    due_in: float | None
    epoch: int


@dataclass(frozen=True, slots=True)
class FailedTries:
    """The failed tries of a step that is not done. `due_in` and `began_ago` are seconds from the load."""

    count: int = 0
    due_in: float | None = None
    began_ago: float = 0.0


@dataclass(slots=True)
class History:
    """A run's journal and the counters of its queue row, read in one snapshot.

    `epoch` is that of the claim; 0 when the claim was gone already. `loaded_at` is the loop's time at the load, so
    that `due_in` can be turned into a moment of this process.
    """

    epoch: int = 0
    wakes: int = 0
    done: int = 0
    loaded_at: float = 0.0
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict[int, Checkpoint])
    tries: dict[int, FailedTries] = field(default_factory=dict[int, FailedTries])

    def find(self, key: int, name: str, kind: Kind) -> Checkpoint | None:
        """The checkpoint under this key, or None.

        Raises:
            StepDiverged: the journal holds another name or another kind of operation there.
        """
        stored = self.checkpoints.get(key)
        if stored is None:
            return None
        if stored.name != name or stored.kind != kind:
            raise StepDiverged(
                f"the journal has {Kind(stored.kind).name.lower()} {stored.name!r} where the code now has"
                f" {kind.name.lower()} {name!r}; give the changed operation a name of its own"
            )
        return stored


def checkpoint_of(row: Any) -> Checkpoint:
    """A journal row as a record."""
    return Checkpoint(
        row["kind"],
        row["status"],
        row["name"],
        row["attempts"],
        row["result"],
        row["error"],
        row["due_in"],
        row["epoch"],
    )


def histories_of(rows: Iterable[Any], loaded_at: float) -> dict[int, History]:
    """Group the rows of `load_journal` by execution."""
    found: dict[int, History] = {}
    for row in rows:
        history = found.get(row["id"])
        if history is None:
            history = found[row["id"]] = History(loaded_at=loaded_at)
        what = row["what"]
        if what == "counters":
            history.epoch, history.wakes, history.done = row["epoch"], row["wakes"], row["done"]
        elif what == "checkpoint":
            history.checkpoints[row["step_key"]] = checkpoint_of(row)
        else:
            _add_try(history, row)
    return found


def _add_try(history: History, row: Any) -> None:
    before = history.tries.get(row["step_key"], FailedTries())
    count: int = row["attempts"]
    if count <= before.count:
        history.tries[row["step_key"]] = FailedTries(
            before.count, before.due_in, max(before.began_ago, row["began_ago"])
        )
    else:
        history.tries[row["step_key"]] = FailedTries(count, row["due_in"], max(before.began_ago, row["began_ago"]))
