"""Workflows made at random: trees of everything a body can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hypothesis import strategies as st


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its value, how often it fails before it gives it, whether it gives up, declines, runs in a thread.

    One that `writes` notes its name in a table, by trx() where there is a database.
    """

    value: int
    failures: int = 0
    gives_up: bool = False
    declines: bool = False
    in_thread: bool = False
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    units: int


@dataclass(frozen=True, slots=True)
class Event:
    """A wait for an event of its own. `offered`: units after the start, 0 before it, None never."""

    timeout: int | None
    offered: int | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A captured value, or the time."""

    is_time: bool


@dataclass(frozen=True, slots=True)
class Poll:
    """A loop that asks until the answer is yes."""

    rounds: int
    units: int


@dataclass(frozen=True, slots=True)
class Beside:
    """Branches in parallel."""

    branches: tuple[tuple[Node, ...], ...]
    in_group: bool


@dataclass(frozen=True, slots=True)
class Guarded:
    """Nodes in try, except and finally; at the end an error of the body's own, if it `raises`."""

    nodes: tuple[Node, ...]
    raises: bool


@dataclass(frozen=True, slots=True)
class FailOnce:
    """A step that fails the first pass of an execution: in the body, or elsewhere."""

    at: Literal["body", "scheduled", "child"]


@dataclass(frozen=True, slots=True)
class Child:
    """A child execution, which fails at its end if it is told to; `mended`: what its failure handler does, if any."""

    nodes: tuple[Node, ...]
    fails: bool
    mended: tuple[Node, ...] | None = None


@dataclass(frozen=True, slots=True)
class Fan:
    """Steps and children that are scheduled together, and awaited in some way, maybe after a sleep."""

    calls: tuple[Step | Child, ...]
    how: Literal["wait", "wait for halves", "gather", "each", "twice", "never"]
    turned_by: int
    sleep: int | None


Node: TypeAlias = "Step | Sleep | Event | Kept | Poll | Beside | Guarded | FailOnce | Child | Fan"

# Bodies of children have no events that somebody offers: nobody knows when there is a child to offer them to.
DEPTH = 2


def fans(calls: st.SearchStrategy[Step | Child]) -> st.SearchStrategy[Node]:
    """Fans of calls; those that nobody awaits are of steps that do well in the end."""
    turned_by, sleep = st.integers(0, 3), st.one_of(st.none(), st.integers(0, 2))
    awaited = st.sampled_from(["wait", "wait for halves", "gather", "each", "twice"])
    done_well = st.builds(Step, st.integers(0, 9), failures=st.integers(0, 2))
    return st.one_of(
        st.builds(Fan, st.lists(calls, min_size=1, max_size=4).map(tuple), awaited, turned_by, sleep),
        st.builds(Fan, st.lists(done_well, min_size=1, max_size=3).map(tuple), st.just("never"), turned_by, sleep),
    )


def with_children(leaves: st.SearchStrategy[Node], steps: st.SearchStrategy[Step]) -> st.SearchStrategy[Node]:
    """Leaves, and child executions of them, which have some in turn."""
    nodes: st.SearchStrategy[Node] = st.one_of(leaves, fans(steps))
    for _ in range(DEPTH):
        some = st.lists(nodes, min_size=1, max_size=2).map(tuple)
        children = st.builds(Child, some, st.booleans(), st.one_of(st.none(), some))
        nodes = st.one_of(leaves, fans(st.one_of(steps, children)), children)
    return nodes


def trees(*, may_race: bool) -> st.SearchStrategy[tuple[Node, ...]]:
    """Workflows.

    Args:
        may_race: an event may be offered later though it has a timeout; only on a clock that nothing disturbs is it
            known which of the two is first.
    """
    values = st.integers(0, 9)
    units = st.integers(0, 3)
    steps: st.SearchStrategy[Step] = st.one_of(
        st.builds(Step, values),
        st.builds(Step, values, in_thread=st.just(True)),
        st.builds(Step, values, failures=st.integers(1, 3)),
        st.builds(Step, values, failures=st.integers(1, 2), gives_up=st.just(True)),
        st.builds(Step, values, declines=st.just(True)),
        st.builds(Step, values, writes=st.just(True)),
    )
    offered = st.one_of(st.none(), units if may_race else st.just(0))
    alone: st.SearchStrategy[Node] = st.one_of(
        steps,
        st.builds(Sleep, units),
        st.builds(Event, units, st.none()),
        st.builds(Kept, st.booleans()),
        st.builds(Poll, st.integers(1, 3), units),
    )
    leaves: st.SearchStrategy[Node] = st.one_of(
        alone, st.builds(Event, units, offered), st.builds(Event, st.none(), units), with_children(alone, steps)
    )

    def grown(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        several = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.one_of(
            st.builds(Beside, st.lists(several, min_size=2, max_size=3).map(tuple), st.booleans()),
            st.builds(Guarded, several, st.booleans()),
        )

    node = st.recursive(leaves, grown, max_leaves=10)
    fails_once = st.builds(FailOnce, st.sampled_from(["body", "scheduled", "child"]))
    return st.lists(st.one_of(node, node, node, fails_once), min_size=1, max_size=4).map(tuple)


def events_of(nodes: Sequence[Node], path: str = "") -> dict[str, int]:
    """The events to be offered by name, and when."""
    found: dict[str, int] = {}
    for number, node in enumerate(nodes):
        here = f"{path}.{number}"
        if isinstance(node, Event) and node.offered is not None:
            found[f"event{here}"] = node.offered
        for below, inside in _inside(node, here):
            found |= events_of(inside, below)
    return found


def unawaited_of(nodes: Sequence[Node], path: str = "") -> set[str]:
    """Names of scheduled steps that nobody awaits: if their body fails, chance decides whether they end before it."""
    found: set[str] = set()
    for number, node in enumerate(nodes):
        here = f"{path}.{number}"
        if isinstance(node, Fan) and node.how == "never":
            found |= {f"step{here}.{index}" for index in range(len(node.calls))}
        for below, inside in _inside(node, here):
            found |= unawaited_of(inside, below)
    return found


def _inside(node: Node, here: str) -> list[tuple[str, tuple[Node, ...]]]:
    """The nodes in a node, by their path."""
    match node:
        case Guarded(nodes):
            return [(here, nodes)]
        case Beside(branches):
            return [(f"{here}.{index}", branch) for index, branch in enumerate(branches)]
        case Child(nodes, _, mended):
            return [(here, nodes), (f"{here}.mend", mended or ())]
        case Fan(calls):
            return [each for index, call in enumerate(calls) for each in _inside(call, f"{here}.{index}")]
        case _:
            return []
