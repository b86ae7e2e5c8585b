"""Transfers by `trx()` under random faults, for ZART_RACE_SECONDS (default 10); ZART_RACE_SEED repeats the choices."""

from __future__ import annotations

import os
import random

from tests.race import transfers
from tests.support.database import Database

SECONDS = float(os.environ.get("ZART_RACE_SECONDS", "10"))
SEED = int(os.environ.get("ZART_RACE_SEED") or random.getrandbits(32))


async def test_every_balance_is_exact_whatever_is_cut_and_taken(database: Database) -> None:
    print(f"ZART_RACE_SEED={SEED}")
    ledger, wrong = await transfers.run(database, seed=SEED, seconds=SECONDS)
    print(len(ledger.moves), "executions", dict(ledger.faults))
    assert wrong == []
    assert ledger.faults["transactions cut"] > 0
    assert ledger.faults["claims taken"] > 0
