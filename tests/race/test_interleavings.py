"""The protocol's races, and that each known fault in its statements is seen."""

from __future__ import annotations

import asyncpg
import pytest

from tests.race.event_interleavings import EVENT_INTERLEAVINGS
from tests.race.faults import FAULTS, Fault
from tests.race.interleavings import INTERLEAVINGS, Interleaving
from tests.race.scene import Scene, put_in
from tests.support.database import Database


@pytest.mark.parametrize("interleaving", INTERLEAVINGS + EVENT_INTERLEAVINGS, ids=lambda each: each.__name__)
async def test_nothing_is_lost_or_done_twice(database: Database, interleaving: Interleaving) -> None:
    async with Scene(database) as scene:
        await interleaving(scene)
    assert scene.violations == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_in_the_statements_is_seen(database: Database, fault: Fault) -> None:
    await put_in(database, fault.function, *fault.replacements)
    async with Scene(database) as scene:
        try:
            await fault.seen_by(scene)
        except asyncpg.PostgresError as error:
            scene.must(False, f"a statement failed: {error}")
    assert scene.violations != []
