"""A worker without an engine: it sends ticks made by hand and gives back what they answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import asyncpg

from tests.support.database import Database
from zart.model import Kind, Outcome, StoredStatus, Verb
from zart.store import executions, queue, workers
from zart.store.statements import statement

NEVER = 2**31 - 1
"""`done_at` of a body that awaits no children."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One row of the tick's checkpoint columns, in their order."""

    id: int
    epoch: int
    key: int
    kind: Kind = Kind.STEP
    status: int = Outcome.COMPLETED
    attempts: int = 1
    due: float | None = None
    seconds: float | None = None
    name: str = "step"
    result: bytes | None = b"null"
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the tick's verb columns, in their order."""

    id: int
    epoch: int
    verb: Verb
    seen: int = 0
    done_at: int = NEVER
    due: float | None = None
    status: int = StoredStatus.COMPLETED
    output: bytes | None = None
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """One row of the tick's children columns, in their order."""

    parent: int
    run: int
    key: int
    name: str
    task_name: str
    lane: int
    priority: int = 2
    input: bytes = b"null"
    max_retries: int = 0
    deadline: float | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim, as a tick or a registration gave it."""

    id: int
    run: int
    epoch: int
    wakes: int = 0
    done: int = 0
    crashes: int = 0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tick answered. `applied` are the ids of the verbs that were applied."""

    fenced: bool
    lease_live: bool = False
    checkpointed: int = 0
    applied: frozenset[int] = frozenset()
    later: int = 0
    woken: frozenset[int] = frozenset()
    claims: tuple[Claim, ...] = ()


@dataclass(slots=True)
class TickingWorker:
    """A registered worker on a connection of its own."""

    connection: asyncpg.Connection
    schema: str
    bucket: int
    lanes: list[int]
    id: int = field(default_factory=lambda: random.getrandbits(62))

    async def register(self, *, old: int = workers.NOBODY, lease: float = 3600.0) -> list[Claim]:
        """Register under this worker's id, as the heir of `old`."""
        rows = await workers.reregister(
            self.connection,
            self.schema,
            self.bucket,
            old,
            self.id,
            lease=lease,
            host="here",
            pid=1,
            task_names=["task"],
            queues=None,
        )
        return [Claim(row["id"], row["run"], row["epoch"], row["wakes"], row["done"]) for row in rows]

    async def tick(
        self,
        checkpoints: Sequence[Checkpoint] = (),
        moves: Sequence[Move] = (),
        children: Sequence[Child] = (),
        *,
        claim: int = 0,
        lanes: Sequence[int] | None = None,
    ) -> Answer:
        """One tick; at most `claim` claims from `lanes` (its own unless given)."""
        arguments = self.arguments(checkpoints, moves, children, claim=claim, lanes=lanes)
        return read_answer(await self.connection.fetch(statement("tick", self.schema), *arguments), moves)

    def arguments(
        self,
        checkpoints: Sequence[Checkpoint] = (),
        moves: Sequence[Move] = (),
        children: Sequence[Child] = (),
        *,
        claim: int = 0,
        lanes: Sequence[int] | None = None,
    ) -> list[object]:
        """The tick's parameters $1..$35."""
        return [
            self.bucket,
            self.id,
            *_columns(checkpoints, 11),
            *_columns(moves, 9),
            *_columns(children, 11),
            list(self.lanes if lanes is None else lanes),
            claim,
        ]

    async def claim(self, limit: int = 1) -> list[Claim]:
        """A tick that only claims."""
        return list((await self.tick(claim=limit)).claims)

    async def look(self, claims: Sequence[Claim], *, seen: int = 0, done_at: int = NEVER) -> dict[int, int | None]:
        """Wakes of those claims that have something to hear; None: the claim is gone."""
        return await queue.look(
            self.connection,
            self.schema,
            self.bucket,
            self.id,
            [claim.id for claim in claims],
            [claim.epoch for claim in claims],
            [seen] * len(claims),
            [done_at] * len(claims),
        )


def read_answer(rows: Sequence[asyncpg.Record], moves: Sequence[Move] = ()) -> Answer:
    """The rows of a tick as one record; `moves` are those it was sent."""
    by_kind: dict[str, asyncpg.Record] = {row["what"]: row for row in rows if row["what"] != "claim"}
    if "fence" not in by_kind:
        assert not rows, f"a fenced worker was answered {rows}"
        return Answer(fenced=True)
    applied = by_kind.get("applied")
    return Answer(
        fenced=False,
        lease_live=bool(by_kind["fence"]["extra"]),
        checkpointed=by_kind["checkpointed"]["extra"] if "checkpointed" in by_kind else 0,
        applied=_applied(applied, moves),
        later=by_kind["later"]["extra"] if "later" in by_kind else 0,
        woken=frozenset(by_kind["wake"]["ids"]) if "wake" in by_kind else frozenset(),
        claims=tuple(
            Claim(row["id"], row["run"], row["epoch"], row["wakes"], row["done"], row["crashes"], row["waited"])
            for row in rows
            if row["what"] == "claim"
        ),
    )


async def start(database: Database, connection: asyncpg.Connection, *execution_ids: str, text: str = "null") -> int:
    """Start executions of the task `task` in the test's bucket; gives back their lane."""
    lanes = await queue.add_lanes(connection, database.schema, [("default", "task")])
    lane = lanes["default", "task"]
    await executions.start(
        connection,
        database.schema,
        database.bucket,
        list(execution_ids),
        [text] * len(execution_ids),
        task_name="task",
        lane=lane,
        priority=2,
    )
    return lane


def _applied(row: asyncpg.Record | None, moves: Sequence[Move]) -> frozenset[int]:
    if row is None:
        return frozenset()
    ids = [move.id for move in moves] if row["ids"] is None else row["ids"]
    assert row["extra"] == len(ids)
    return frozenset(ids)


def _columns(rows: Sequence[Checkpoint] | Sequence[Move] | Sequence[Child], width: int) -> list[list[object]]:
    if not rows:
        return [[] for _ in range(width)]
    return [list(column) for column in zip(*(astuple(row) for row in rows), strict=True)]
