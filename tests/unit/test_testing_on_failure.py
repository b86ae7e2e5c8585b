"""Failure handlers in a run under test."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import zart
from zart import ExecutionFailed, Failure, zart_durable, zart_step
from zart.testing import Run, RunStuck, crash_everywhere


@zart_step("note-{text}")
async def note(text: str) -> str:
    return text


@zart_step("broken", retry="fixed(1, 1h)")
async def broken() -> None:
    raise ValueError("it broke")


@zart_durable("napping")
async def napping(text: str) -> str:
    await zart.sleep("nap", "1h")
    return await note(text)


async def all_sorts(failure: Failure) -> str:
    first = await note("first")
    await zart.sleep("nap", "1d")
    said = await zart.wait_for_event("said", str)
    return " ".join([first, said, await zart.schedule(note("second")), await napping("third"), type(failure).__name__])


@zart_durable("all-sorts", on_failure=all_sorts, timeout="5h", retry="fixed(1, 1s)")
async def fails() -> str:
    await note("first")
    await zart.schedule(note("second"))
    _forgotten = zart.schedule(napping("never").named("forgotten"))
    await broken()
    return "done"


def say(run: Run[Any]) -> None:
    run.offer_event("said", "hello", after="2d")


async def test_a_handler_runs_with_all_that_a_body_can_do() -> None:
    run = Run(fails)
    say(run)
    assert await run.result() == "first hello second third RetriesExhausted"
    assert run.elapsed == timedelta(days=2, hours=1)
    assert run.starts["on_failure/note-first"] == run.starts["note-first"] == 1
    assert [step.name for step in run.history] == [
        "note-first",
        "note-second",
        "forgotten",
        "broken",
        "on_failure",
        "on_failure/note-first",
        "on_failure/nap",
        "said",
        "on_failure/note-second",
        "on_failure/napping",
    ]


async def test_a_crash_anywhere_in_body_or_handler_changes_nothing() -> None:
    assert await crash_everywhere(fails, prepare=say) == "first hello second third RetriesExhausted"


async def test_a_crash_can_be_asked_for_in_the_handler() -> None:
    run = Run(fails)
    say(run)
    run.crash_before("on_failure/note-first")
    await run.result()
    assert (run.starts["note-first"], run.starts["on_failure/note-first"]) == (1, 2)


async def test_a_deadline_ends_the_children_of_the_body_and_not_the_handler() -> None:
    async def late(failure: Failure) -> str:
        await zart.sleep("nap", "3h")
        return await napping("of the handler")

    @zart_durable("late", on_failure=late, timeout="30m")
    async def hurried() -> str:
        return await napping("of the body")

    run = Run(hurried)
    assert await run.result() == "of the handler"
    assert run.elapsed == timedelta(hours=4, minutes=30)
    assert "note-of the body" not in run.starts


async def test_of_a_handler_that_fails_the_first_failure_stands() -> None:
    async def worse(failure: Failure) -> str:
        raise LookupError("worse")

    @zart_durable("worse", on_failure=worse)
    async def bad() -> str:
        raise ValueError("bad")

    with pytest.raises(ExecutionFailed, match="bad") as caught:
        await Run(bad).result()
    assert caught.value.error["on_failure"]["message"] == "worse"


async def test_a_handler_that_waits_in_vain_is_told_of() -> None:
    async def waits(failure: Failure) -> str:
        await zart.wait_for_event("said")
        return "never"

    @zart_durable("waits", on_failure=waits, timeout="1h")
    async def body() -> str:
        await zart.wait_for_event("before")
        return "never"

    with pytest.raises(RunStuck, match="waits for the event 'said', and nobody"):
        await Run(body).result()
