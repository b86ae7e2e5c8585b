"""No event is lost, whatever comes first. ZART_RACE_SEED repeats a run's choices, ZART_RACE_INTERLEAVINGS
(default 10,000) is how many are played."""

from __future__ import annotations

import os
import random

import pytest

from tests.race import events
from tests.race.faults import FAULTS, Fault
from tests.race.scene import Scene, put_in
from tests.support.database import Database

INTERLEAVINGS = int(os.environ.get("ZART_RACE_INTERLEAVINGS", "10000"))
ENOUGH_FOR_A_FAULT = 1_000
SEED = int(os.environ.get("ZART_RACE_SEED") or random.getrandbits(32))

HAPPENED = (
    "there before the wait",
    "found after registering",
    "heard of a wake-up",
    "parked",
    "parked over an event",
    "woken by it",
    "busy when parked",
    "timeouts",
    "timeouts sent again",
    "timeouts too late",
    "accepted",
    "already_offered",
    "finished",
    "commits later",
    "rollbacks",
    "cancelled",
)


async def test_no_event_is_lost_and_each_wait_has_one_outcome(database: Database) -> None:
    print(f"seed {SEED}")
    async with Scene(database) as scene:
        counts = await events.play(scene, seed=SEED, interleavings=INTERLEAVINGS)
    print(dict(counts))
    assert scene.violations == [], f"ZART_RACE_SEED={SEED}"
    assert counts["ended"] >= INTERLEAVINGS
    assert {each: counts[each] for each in HAPPENED if counts[each] < 10} == {}


async def test_a_body_that_reads_before_it_looks_is_seen_to_lose_events(database: Database) -> None:
    print(f"seed {SEED}")
    async with Scene(database) as scene:
        await events.play(scene, seed=SEED, interleavings=ENOUGH_FOR_A_FAULT, reads_first=True)
    assert any("a wake-up was lost" in violation for violation in scene.violations), f"ZART_RACE_SEED={SEED}"


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.at_random], ids=lambda fault: fault.name)
async def test_a_fault_in_the_statements_is_seen(database: Database, fault: Fault) -> None:
    print(f"seed {SEED}")
    await put_in(database, fault.function, *fault.replacements)
    async with Scene(database) as scene:
        await events.play(scene, seed=SEED, interleavings=ENOUGH_FOR_A_FAULT)
    assert scene.violations != [], f"ZART_RACE_SEED={SEED}"
    print(scene.violations[0])
