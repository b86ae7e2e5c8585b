"""Where a run's worker dies: right before or right after something is stored."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from zart.model import Kind, Verb


class Moment(enum.StrEnum):
    """On which side of a write the worker dies."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Write:
    """One thing that a run has its database store.

    Attributes:
        number: counts the run's writes, lost ones included, from 1.
        what: a journal row's kind, how a turn ends, or HOLD for the making of children.
        name: of the operation, or of the child whose turn ends, the names of the executions that it belongs to before
            it: "order/pay"; of children that are made, all their names.
        attempt: number of the failed try, for those.
    """

    number: int
    what: Kind | Verb
    name: str = ""
    attempt: int | None = None

    def __str__(self) -> str:
        if self.what is Verb.HOLD:
            return f"the making of {self.name}"
        if isinstance(self.what, Verb):
            return f"{_ENDS[self.what]} of {self.name!r}" if self.name else _ENDS[self.what]
        if self.what is Kind.ATTEMPT:
            return f"failed try {self.attempt} of step {self.name!r}"
        return f"{_ROWS.get(self.what, self.what.name.lower())} {self.name!r}"


_ENDS = {
    Verb.FINISH: "the end",
    Verb.PARK: "parking",
    Verb.PUT_OFF: "putting it off",
    Verb.RETRY: "the retry of the execution",
    Verb.HANDLE: "the failure",
}
_ROWS = {
    Kind.STEP: "the result of step",
    Kind.CHILD: "the outcome of",
    Kind.CAPTURE: "captured value",
    Kind.WAIT: "the wait for event",
    Kind.EVENT: "the timeout of event",
}


@dataclass(frozen=True, slots=True)
class Point:
    """Where to die, once: at a write of this name, or of this number, if the run makes so many."""

    moment: Moment
    name: str = ""
    attempt: int | None = None
    number: int | None = None

    def __str__(self) -> str:
        tried = "" if self.attempt is None else f", attempt={self.attempt}"
        return f"crash_{self.moment}({self.name!r}{tried})"

    def is_at(self, write: Write) -> bool:
        if self.number is not None:
            return self.number == write.number
        return not isinstance(write.what, Verb) and (self.name, self.attempt) == (write.name, write.attempt)


@dataclass(slots=True)
class CrashPlan:
    """The points that are left, and all writes so far."""

    points: list[Point] = field(default_factory=list[Point])
    writes: list[Write] = field(default_factory=list[Write])

    def note(self, what: Kind | Verb, name: str = "", attempt: int | None = None) -> Moment | None:
        """A write is about to happen: on which side of it the worker dies, if it does."""
        write = Write(len(self.writes) + 1, what, name, attempt)
        self.writes.append(write)
        for point in self.points:
            if point.is_at(write):
                self.points.remove(point)
                return point.moment
        return None

    def missed(self) -> str:
        """Which points were asked for by name and never reached, in words; empty: none."""
        left = ", ".join(str(point) for point in self.points if point.name)
        names = (write.name for write in self.writes if not isinstance(write.what, Verb))
        stored = ", ".join(dict.fromkeys(names)) or "nothing"
        return f"the run ended without {left}: it stored {stored}" if left else ""
