"""The protocol under random load, for ZART_RACE_SECONDS (default 20); ZART_RACE_SEED repeats a run's choices."""

from __future__ import annotations

import os
import random

from tests.race.stress import stress
from tests.support.database import Database

SECONDS = float(os.environ.get("ZART_RACE_SECONDS", "20"))
SEED = int(os.environ.get("ZART_RACE_SEED") or random.getrandbits(32))


async def test_nothing_is_stuck_lost_or_changed_under_random_load(database: Database) -> None:
    race = await stress(database, seed=SEED, seconds=SECONDS)
    assert race.violations == [], f"ZART_RACE_SEED={SEED}"
    assert race.counts["connections cut"] > 0
    assert race.counts["claims taken over"] > 0
