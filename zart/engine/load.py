"""From a claim to a running body: reads the record and, for resumed executions, the history, then begins the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from zart import tracing
from zart.codec import PLAIN
from zart.config import WorkerConfig
from zart.engine import failure, handler
from zart.engine.replay import History, histories_of
from zart.engine.session import Session
from zart.engine.spec import DurableSpec, WorkItem
from zart.engine.ticker import Ticker
from zart.engine.turn import Turn
from zart.errors import InvalidArgument, SerializationError
from zart.meters import BYTES_READ
from zart.model import ExecutionInfo, StoredStatus, Verb
from zart.names import FAILURE_PREFIX
from zart.store import queue

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

# Between two ticks: a long read keeps everybody's checkpoints waiting.
RECORDS_AT_ONCE = 500
HISTORIES_AT_ONCE = 64
PARENTS_KEPT = 64


class Loader:
    """Begins claimed turns. What fails to load stays in `waiting`, and is loaded by the next call.

    Args:
        lanes: queue and task of all those that are claimed from.
        lose: told of turns whose claim turns out to be gone.
    """

    def __init__(
        self,
        session: Session,
        rows: Ticker,
        registry: Mapping[str, DurableSpec],
        lanes: Mapping[int, tuple[str, str]],
        config: WorkerConfig,
        lose: Callable[[Turn], None],
    ) -> None:
        self.waiting: list[Turn] = []
        self._session, self._rows, self._registry, self._config, self._lose = session, rows, registry, config, lose
        self._lanes, self._loop = lanes, asyncio.get_running_loop()
        self._parents: dict[int, ExecutionInfo] = {}

    async def begin_all(self, *, draining: bool) -> None:
        """Begin every waiting turn, or hand it back when the worker drains."""
        while self.waiting:
            bucket = self.waiting[0].bucket
            turns = [turn for turn in self.waiting if turn.bucket == bucket][:RECORDS_AT_ONCE]
            records, histories = ({}, {}) if draining else await self._read(bucket, turns)
            deaths = await self._read_deaths(bucket, turns)
            if records and (tracer := tracing.tracer()) is not None:
                await self._trace(tracer, bucket, turns, records, histories)
            done = set(turns)
            self.waiting = [turn for turn in self.waiting if turn not in done]
            for turn in turns:
                if turn.ended:
                    continue
                if draining:
                    turn.close()
                    self._rows.end(turn, Verb.PUT_OFF, due=0.0)
                else:
                    self._begin(turn, records.get(turn.id), histories.get(turn.id), deaths.get(turn.id))

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
            session.place.add(BYTES_READ, sum(size_of(row["result"]) + size_of(row["error"]) for row in found))
        await self._read_parents(bucket, rows)
        session.place.add(BYTES_READ, sum(size_of(row["input"]) for row in rows))
        return {row["id"]: row for row in rows}, histories

    async def _read_deaths(self, bucket: int, turns: Sequence[Turn]) -> dict[int, Any]:
        """How the processes died of those that have killed too often."""
        ids = [turn.id for turn in turns if turn.crashes > self._config.max_crashes]
        if not ids:
            return {}
        rows = await queue.read_deaths(self._session.connection, self._session.schema, bucket, ids)
        return {row["id"]: row for row in rows}

    async def _trace(
        self,
        tracer: Tracer,
        bucket: int,
        turns: Sequence[Turn],
        records: Mapping[int, Any],
        histories: Mapping[int, History],
    ) -> None:
        """Begin the spans of these turns. Whatever becomes of a turn, the next one finds its context."""
        noted: list[tuple[int, int, str]] = []
        for turn in turns:
            row = records.get(turn.id)
            if turn.ended or row is None:
                continue
            if turn.span is None:
                about = {"execution.id": row["execution_id"], "run": turn.run, "epoch": turn.epoch}
                about |= {
                    "task.name": row["task_name"],
                    "queue": self._lanes[row["lane"]][0],
                    "attempt": row["attempt"],
                }
                before = histories[turn.id].traceparent if turn.id in histories else None
                turn.span = tracing.begin_turn(tracer, row["task_name"], about, row["traceparent"], before)
            if turn.span is not None and (context := tracing.traceparent(turn.span, recorded=True)):
                noted.append((turn.id, turn.epoch, context))
        if noted:
            session = self._session
            columns = zip(*noted, strict=True)
            await queue.note_turns(session.connection, session.schema, bucket, session.worker_id, *map(list, columns))

    async def _read_parents(self, bucket: int, rows: Sequence[Any]) -> None:
        """What scheduled steps are told of their parents: read once, as many children have the same."""
        wanted = {row["parent"] for row in rows if row["parent"] is not None and self._is_step(row)}
        if len(self._parents) > PARENTS_KEPT:
            self._parents = {id: one for id, one in self._parents.items() if id in wanted}
        missing = [id for id in wanted if id not in self._parents]
        if missing:
            session = self._session
            for row in await queue.load_claims(session.connection, session.schema, bucket, missing):
                self._parents[row["id"]] = self._told_of(row)

    def _is_step(self, row: Any) -> bool:
        spec = self._registry.get(row["task_name"])
        return spec is not None and spec.is_step

    def _told_of(self, row: Any) -> ExecutionInfo:
        """A parent as `context()` shows it; its data as plain JSON if it is not served here, or does not fit."""
        spec = self._registry.get(row["task_name"])
        try:
            codec = PLAIN if spec is None else spec.input_codec
            data = codec.decode(row["input"] or "null") if spec is None or spec.takes_data else None
        except BaseException:  # code of the input's own type, which may even exit
            data = orjson.loads(row["input"] or "null")
        return ExecutionInfo(row["execution_id"], row["task_name"], data, row["attempt"], row["max_retries"])

    def _begin(self, turn: Turn, row: Any, history: History | None, death: Any) -> None:
        """Start the body, unless its claim is gone, it has killed too often, or its input cannot be read."""
        if row is None or (turn.is_resumed() and (history is None or history.epoch != turn.epoch)):
            self._lose(turn)
            return
        spec = turn.spec = self._registry[row["task_name"]]
        turn.history, turn.execution_id, turn.attempt = history, row["execution_id"], row["attempt"]
        turn.born = monotonic() - row["age"]
        if history is not None:
            turn.seen = history.wakes
        if death is not None:
            self._refuse(turn, StoredStatus.QUARANTINED, _quarantined(turn, death))
            return
        deadline_in: float | None = row["deadline_in"]
        if deadline_in is None and spec.timeout is not None:
            # Started by name, by someone who did not know the timeout: it counts from the first claim.
            deadline_in = spec.timeout - (history.claimed_ago if history is not None else 0.0)
        place = self._session.place
        place.executing = turn.id  # code of the input's own type may run
        try:
            data = spec.input_codec.decode(row["input"] or "null") if spec.takes_data else None
        except SerializationError as error:
            misfit = error.located(
                f"input of execution {row['execution_id']!r}", remedy="start it with data that fits, under another id"
            )
            self._refuse_input(turn, misfit, history)
            return
        except BaseException as error:  # it may even exit
            self._refuse_input(turn, error, history)
            return
        finally:
            place.executing = 0
        if spec.is_step and row["step_name"] is None:
            misplaced = InvalidArgument(
                f"{row['task_name']!r} is a step, which only the body of an execution can schedule;"
                " start a durable function"
            )
            self._refuse_input(turn, misplaced, history)
            return
        if spec.is_step:
            data = WorkItem(row["step_name"].removeprefix(FAILURE_PREFIX), data)
        turn.begin(
            spec,
            row["execution_id"],
            data,
            row["attempt"],
            deadline_in,
            self._loop,
            queue=self._lanes[row["lane"]][0],
            priority=row["priority"],
            parent=self._parents.get(row["parent"]) if spec.is_step else None,
        )

    def _refuse_input(self, turn: Turn, error: BaseException, history: History | None) -> None:
        """Without its input no handler can run either; a failure that is journaled already stands."""
        record = {**failure.describe(error), "kind": "input_refused"}
        first = None if history is None else handler.journaled_failure(history)
        self._refuse(turn, StoredStatus.FAILED, record if first is None else handler.final_record(first, record))

    def _refuse(self, turn: Turn, status: StoredStatus, record: failure.Record) -> None:
        turn.close()
        self._rows.end(turn, Verb.FINISH, status=status, error=failure.encode(record))


def size_of(text: str | None) -> int:
    """Bytes of JSON text."""
    return 0 if text is None else len(text) if text.isascii() else len(text.encode())


def _quarantined(turn: Turn, row: Any) -> failure.Record:
    """Why an execution is not run any more. The first of its deaths set it apart, the others it died alone."""
    death: failure.Record = failure.decode(row["death"] or "{}")
    step, last = death.get("step"), row["last_name"]
    if step is not None and step != last:
        at = f"in step {step!r}"
    else:
        at = "before its first checkpoint" if last is None else f"after {last!r}"
    how = death.get("how") or "unknown"
    return {
        "kind": "quarantined",
        "type": "Quarantined",
        "message": (
            f"while its code ran, its process died {turn.crashes} times, {turn.crashes - 1} of them with nothing else"
            f" in it; the last time {at} ({how})"
        ),
        "how": how,
        "step": step,
        "last_checkpoint": last,
    }
