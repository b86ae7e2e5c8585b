"""What the journal says of one run: a hit, a miss, or a contradiction. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zart.engine.where import where
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
    """The failed tries of a step that is not done. `due_in` and `began_ago` are seconds from the load.

    Tries before an execution retry count no more: the step begins anew, though the numbers of its tries go on.

    Attributes:
        count: tries of this pass.
        numbered: number of the last one; numbers are never used twice in a run.
        due_in: when the next one may begin.
        began_ago: how long ago the first of this pass began.
    """

    count: int = 0
    numbered: int = 0
    due_in: float | None = None
    began_ago: float = 0.0

    def and_then(self, row: Any) -> FailedTries:
        """These and the next one. A try with nothing due after it was the last of its pass."""
        number: int = row["attempts"]
        if row["due_in"] is None:
            return FailedTries(numbered=number)
        return FailedTries(self.count + 1, number, row["due_in"], max(self.began_ago, row["began_ago"]))


@dataclass(slots=True)
class History:
    """A run's journal and the counters of its queue row, read in one snapshot.

    Attributes:
        epoch: that of the claim; 0 when the claim was gone already.
        claimed_ago: how long ago the run was claimed for the first time.
        loaded_at: the loop's time at the load, so that `due_in` can be turned into a moment of this process.
        made: keys of the children that have not ended.
        traceparent: trace context of the turn before, if it was traced.
    """

    epoch: int = 0
    wakes: int = 0
    done: int = 0
    claimed_ago: float = 0.0
    loaded_at: float = 0.0
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict[int, Checkpoint])
    tries: dict[int, FailedTries] = field(default_factory=dict[int, FailedTries])
    made: set[int] = field(default_factory=set[int])
    traceparent: str | None = None

    def find(self, key: int, name: str, kind: Kind, body: asyncio.Task[Any] | None = None) -> Checkpoint | None:
        """The checkpoint under this key, or None.

        Args:
            body: the task of the body that asks, for the error's text.

        Raises:
            StepDiverged: the journal holds another name or another kind of operation there.
        """
        stored = self.checkpoints.get(key)
        if stored is None:
            if key in self.made and kind != Kind.CHILD:
                raise StepDiverged(
                    f"{name!r} was scheduled and still runs, where the code now has {kind.name.lower()}"
                    f" {name!r}{where(body)}; give the changed operation a name of its own"
                )
            return None
        if stored.name != name or stored.kind != kind:
            raise StepDiverged(
                f"the journal has {Kind(stored.kind).name.lower()} {stored.name!r} where the code now has"
                f" {kind.name.lower()} {name!r}{where(body)}; give the changed operation a name of its own"
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
    tries: list[Any] = []
    for row in rows:
        history = found.get(row["id"])
        if history is None:
            history = found[row["id"]] = History(loaded_at=loaded_at)
        what = row["what"]
        if what == "counters":
            history.epoch, history.wakes, history.done = row["epoch"], row["wakes"], row["done"]
            history.claimed_ago, history.traceparent = row["began_ago"], row["traceparent"]
        elif what == "checkpoint":
            history.checkpoints[row["step_key"]] = checkpoint_of(row)
        elif what == "child":
            history.made.add(row["step_key"])
        else:
            tries.append(row)
    for row in sorted(tries, key=lambda row: row["attempts"]):
        of_run, key = found[row["id"]].tries, row["step_key"]
        of_run[key] = of_run.get(key, FailedTries()).and_then(row)
    return found
