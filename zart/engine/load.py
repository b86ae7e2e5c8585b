"""From a claim to a running body: reads the record and, for resumed executions, the history, then begins the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zart.config import WorkerConfig
from zart.engine import failure
from zart.engine.replay import History, histories_of
from zart.engine.session import Session
from zart.engine.spec import DurableSpec
from zart.engine.ticker import Ticker
from zart.engine.turn import Turn
from zart.errors import SerializationError
from zart.model import StoredStatus, Verb
from zart.store import queue

# Between two ticks: a long read keeps everybody's checkpoints waiting.
RECORDS_AT_ONCE = 500
HISTORIES_AT_ONCE = 64


class Loader:
    """Begins claimed turns. What fails to load stays in `waiting`, and is loaded by the next call.

    Args:
        lose: told of turns whose claim turns out to be gone.
    """

    def __init__(
        self,
        session: Session,
        rows: Ticker,
        registry: Mapping[str, DurableSpec],
        config: WorkerConfig,
        lose: Callable[[Turn], None],
    ) -> None:
        self.waiting: list[Turn] = []
        self._session, self._rows, self._registry, self._config, self._lose = session, rows, registry, config, lose
        self._loop = asyncio.get_running_loop()

    async def begin_all(self, *, draining: bool) -> None:
        """Begin every waiting turn, or hand it back when the worker drains."""
        while self.waiting:
            bucket = self.waiting[0].bucket
            turns = [turn for turn in self.waiting if turn.bucket == bucket][:RECORDS_AT_ONCE]
            records, histories = ({}, {}) if draining else await self._read(bucket, turns)
            done = set(turns)
            self.waiting = [turn for turn in self.waiting if turn not in done]
            for turn in turns:
                if turn.ended:
                    continue
                if draining:
                    turn.close()
                    self._rows.end(turn, Verb.PUT_OFF, due=0.0)
                else:
                    self._begin(turn, records.get(turn.id), histories.get(turn.id))

    async def _read(self, bucket: int, turns: Sequence[Turn]) -> tuple[dict[int, Any], dict[int, History]]:
        session = self._session
        rows = await queue.load_claims(session.connection, session.schema, bucket, [turn.id for turn in turns])
        histories: dict[int, History] = {}
        resumed = [turn for turn in turns if turn.is_resumed()]
        for first in range(0, len(resumed), HISTORIES_AT_ONCE):
            part = resumed[first : first + HISTORIES_AT_ONCE]
            ids, runs = [turn.id for turn in part], [turn.run for turn in part]
            found = await queue.load_journal(session.connection, session.schema, bucket, ids, runs, session.worker_id)
            histories.update(histories_of(found, self._loop.time()))
        return {row["id"]: row for row in rows}, histories

    def _begin(self, turn: Turn, row: Any, history: History | None) -> None:
        """Start the body, unless its claim is gone, it has killed too often, or its input cannot be read."""
        if row is None or (turn.is_resumed() and (history is None or history.epoch != turn.epoch)):
            self._lose(turn)
            return
        turn.history = history
        if history is not None:
            turn.seen = history.wakes
        if turn.crashes > self._config.max_crashes:
            self._refuse(turn, StoredStatus.QUARANTINED, _quarantined(turn, history))
            return
        spec = self._registry[row["task_name"]]
        deadline_in: float | None = row["deadline_in"]
        if deadline_in is None and spec.timeout is not None:
            # Started by name, by someone who did not know the timeout: it counts from the first claim.
            deadline_in = spec.timeout - (history.claimed_ago if history is not None else 0.0)
        try:
            data = spec.input_codec.decode(row["input"] or "null") if spec.takes_data else None
        except SerializationError as error:
            misfit = error.located(
                f"input of execution {row['execution_id']!r}", remedy="start it with data that fits, under another id"
            )
            self._refuse(turn, StoredStatus.FAILED, {**failure.describe(misfit), "kind": "input_refused"})
            return
        except BaseException as error:  # code of the input's own type, which may even exit
            self._refuse(turn, StoredStatus.FAILED, {**failure.describe(error), "kind": "input_refused"})
            return
        turn.begin(spec, row["execution_id"], data, row["attempt"], deadline_in, self._loop)

    def _refuse(self, turn: Turn, status: StoredStatus, record: failure.Record) -> None:
        turn.close()
        self._rows.end(turn, Verb.FINISH, status=status, error=failure.encode(record))


def _quarantined(turn: Turn, history: History | None) -> failure.Record:
    """Why an execution is not run any more."""
    kept = list(history.checkpoints.values()) if history is not None else []
    return {
        "kind": "quarantined",
        "type": "Quarantined",
        "message": f"its code was running when its process died, {turn.crashes} times",
        "last_checkpoint": max(kept, key=lambda one: one.epoch).name if kept else None,
    }
