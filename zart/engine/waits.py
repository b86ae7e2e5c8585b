"""What a body waits for: a moment, an event. In memory for a short while; then the turn is parked.

sleep            a journal row with its due time; nothing else is ever written
wait_for_event   a row that says since when and until when; then the event's own row, or that of its timeout,
                 whichever is first under the event's key
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from zart.codec import Codec, step_key
from zart.engine.replay import Checkpoint
from zart.errors import EventTimeout, SerializationError
from zart.model import KeySpace, Kind, Outcome

if TYPE_CHECKING:
    from zart.engine.turn import Turn


async def sleep(turn: Turn, name: str, seconds: float) -> None:
    """Scope.sleep."""
    key, stored = await turn.begin_operation(name, Kind.SLEEP)
    due = _due(turn, stored) if stored is not None else await _register(turn, key, Kind.SLEEP, name, seconds)
    await pause(turn, due)


async def sleep_until(turn: Turn, name: str, when: datetime) -> None:
    """Scope.sleep_until."""
    key, stored = await turn.begin_operation(name, Kind.SLEEP)
    if stored is not None:
        due = _due(turn, stored)
    else:
        left = (when - await turn.host.database_time()).total_seconds()
        due = await _register(turn, key, Kind.SLEEP, name, max(0.0, left))
    await pause(turn, due)


async def wait_for_event(turn: Turn, name: str, codec: Codec, timeout: float | None) -> Any:
    """Scope.wait_for_event."""
    key, event = await turn.begin_event(name)
    if event is None:
        event = await _event_or_timeout(turn, key, name, timeout)
    if event.status != Outcome.COMPLETED:
        raise EventTimeout(f"event {name!r} of execution {turn.execution_id!r} did not come in time")
    try:
        return codec.decode(event.result or "null")
    except SerializationError as error:
        what = f"payload of event {name!r} of execution {turn.execution_id!r}"
        remedy = "wait with the type it was offered as, or with Any"
        raise error.located(what, remedy=remedy) from error.__cause__


async def _event_or_timeout(turn: Turn, key: int, name: str, timeout: float | None) -> Checkpoint:
    wait_name = turn.prefix + name  # an event is one for a run, but a failure handler waits by its own timeout
    wait_key = step_key(KeySpace.WAIT, wait_name)
    waiting = None if turn.history is None else turn.history.find(wait_key, wait_name, Kind.WAIT)
    due = _due(turn, waiting) if waiting is not None else await _register(turn, wait_key, Kind.WAIT, wait_name, timeout)
    heard: asyncio.Future[Checkpoint] = turn.loop.create_future()
    turn.events[key] = heard
    # Only a history as young as what the turn has heard since tells of every event that came before.
    if waiting is None or turn.history is None or turn.history.wakes != turn.seen:
        turn.unread.add(key)
        turn.host.look_for_events()
    try:
        await pause(turn, due, heard)
    finally:
        del turn.events[key]
        turn.unread.discard(key)
    if heard.done():
        return heard.result()
    late = await turn.store(key, Kind.EVENT, Outcome.TIMED_OUT, 1, 0.0, name, None, None)
    if turn.stop is not None:
        await turn.step_aside()
    return late or Checkpoint(Kind.EVENT, Outcome.TIMED_OUT, name, 1, None, None, None, turn.epoch)


async def _register(turn: Turn, key: int, kind: Kind, name: str, seconds: float | None) -> float:
    """Write since when and until when it is waited; the loop's time at which that ends, inf for never."""
    began = turn.loop.time()
    stored = await turn.store(key, kind, Outcome.COMPLETED, 1, 0.0, name, None, None, due=seconds)
    if stored is not None:
        seconds, began = stored.due_in, turn.loop.time()
    return math.inf if seconds is None else began + seconds


def _due(turn: Turn, stored: Checkpoint) -> float:
    assert turn.history is not None
    return math.inf if stored.due_in is None else turn.history.loaded_at + stored.due_in


async def pause(turn: Turn, due: float, heard: asyncio.Future[Any] | None = None) -> None:
    """Wait until a moment of the loop's clock, or until something is heard.

    A wait that is known to be longer than the grace gives the slot back at once, others after the grace, if the whole
    body only waits.

    Raises:
        Suspended: the turn has to stop.
    """
    task, now = asyncio.current_task(turn.loop), turn.loop.time()
    assert task is not None
    if due > now:
        turn.waits[task], turn.waiting_since = due, now
        over: asyncio.Future[None] = turn.loop.create_future()
        timer = None
        if due != math.inf:  # not in this context, which has the turn: asyncio keeps that of timers that were cancelled
            timer = turn.loop.call_later(due - now, _end, over, context=contextvars.Context())
        try:
            grace = turn.host.grace
            if due - now > grace and (heard is None or not grace):
                turn.put_down()
            await (over if heard is None else asyncio.wait({heard, over}, return_when=asyncio.FIRST_COMPLETED))
        except asyncio.CancelledError:
            if turn.cut:
                raise turn.suspended() from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
            del turn.waits[task]
    if turn.stop is not None:
        await turn.step_aside()


def _end(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
