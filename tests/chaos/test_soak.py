"""A short soak; `make soak MINUTES=30` is the long one."""

from __future__ import annotations

import os
import random

from tests.chaos.soak import soak

SECONDS = float(os.environ.get("ZART_TEST_SOAK_SECONDS", "45"))
SEED = int(os.environ.get("ZART_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


async def test_every_invariant_holds_after_random_faults() -> None:
    print(f"ZART_TEST_SEED={SEED}")
    report = await soak(SEED, SECONDS)
    print(report.markdown())
    assert report.violations == [], f"make soak MINUTES={SECONDS / 60:g} SEED={SEED}; {report.log}"
    assert report.faults
