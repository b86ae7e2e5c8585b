"""A worker looks at its claims: what has happened to them, and whether they are still its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns

from zart.engine.load import size_of
from zart.engine.replay import Checkpoint, checkpoint_of
from zart.engine.session import Session
from zart.engine.turn import Turn
from zart.meters import BYTES_READ
from zart.store import queue

BRIEFLY_NS = 100_000_000  # what a look has seen holds for at least so long; a tick tells what is left of the lease
ALWAYS = -1  # a number of wake-ups that never is
LOOK_AT_TURNS_OLDER_THAN = 0.5


class Looker:
    """Asks about the turns of one worker between its ticks.

    Args:
        lose: told of a turn whose claim is gone.

    Attributes:
        sure_until: Host.sure_until.
        due: set when there is reason to look.
    """

    def __init__(self, session: Session, turns: Mapping[int, Turn], lose: Callable[[Turn], None]) -> None:
        self._session, self._turns, self._lose = session, turns, lose
        self._loop = asyncio.get_running_loop()
        self._doubts: list[asyncio.Future[None]] = []
        self.sure_until = [0] * session.buckets
        self.due = False

    def is_wanted(self) -> bool:
        """Whether `look` has something to do."""
        return self.due or bool(self._doubts)

    def doubt(self) -> asyncio.Future[None]:
        """Done when the next look is."""
        doubt: asyncio.Future[None] = self._loop.create_future()
        self._doubts.append(doubt)
        return doubt

    async def look(self) -> None:
        """Waiting turns hear here of events, and those that have gone on for a while that they were cancelled."""
        self.due = False
        before, doubts = self._loop.time() - LOOK_AT_TURNS_OLDER_THAN, self._doubts[:]
        for bucket in range(self._session.buckets):
            asked = monotonic_ns()
            turns = [
                turn
                for turn in self._turns.values()
                if turn.bucket == bucket
                and turn.main is not None
                and (doubts or turn.events or turn.family.waits or turn.began < before)
            ]
            if turns:
                await self._look_at(bucket, turns)
            if doubts:
                self.sure_until[bucket] = max(self.sure_until[bucket], asked + BRIEFLY_NS)
        del self._doubts[: len(doubts)]
        for doubt in doubts:
            if not doubt.done():
                doubt.set_result(None)

    async def _look_at(self, bucket: int, turns: Sequence[Turn]) -> None:
        session = self._session
        wakes = await queue.look(
            session.connection,
            session.schema,
            bucket,
            session.worker_id,
            [turn.id for turn in turns],
            [turn.epoch for turn in turns],
            [ALWAYS if turn.unread else turn.seen for turn in turns],
            [turn.family.awaited() for turn in turns],
        )
        session.place.last_tick_ns = monotonic_ns()
        told: list[tuple[Turn, int, list[int]]] = []
        for turn in turns:
            if turn.id not in wakes or turn.ended:
                continue
            count = wakes[turn.id]
            if count is None:
                self._lose(turn)
            elif keys := [*turn.events, *turn.family.unknown()]:
                told.append((turn, count, keys))
        if told:
            await self._read_awaited(bucket, told)

    async def _read_awaited(self, bucket: int, told: Sequence[tuple[Turn, int, list[int]]]) -> None:
        """Read what turns wait for, after their counters: so an event that comes in between is read again."""
        session = self._session
        asked = [(turn.id, turn.run, key) for turn, _, keys in told for key in keys]
        ids, runs, keys = (list(column) for column in zip(*asked, strict=True))
        found: dict[int, dict[int, Checkpoint]] = {}
        for row in await queue.read_checkpoints(session.connection, session.schema, bucket, ids, runs, keys):
            found.setdefault(row["id"], {})[row["step_key"]] = checkpoint_of(row)
            session.place.add(BYTES_READ, size_of(row["result"]) + size_of(row["error"]))
        for turn, count, looked_for in told:
            if not turn.ended:
                turn.hear(count, found.get(turn.id, {}), looked_for)
