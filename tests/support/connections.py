"""How many connections a runner takes, by the formula in docs/operations.md."""

from __future__ import annotations

import re

from tests.support.shell import ROOT

_FORMULA = re.compile(r"`procs \+ (\d+)` at least, and `procs \+ \1 \+ procs \* trx_pool_size` at most")


def of_a_runner(procs: int, trx_pool_size: int, *, endpoint: bool) -> tuple[int, int]:
    """The least and the most.

    Args:
        procs: its workers.
        trx_pool_size: connections that each worker may lend to steps.
        endpoint: it serves HTTP.
    """
    found = _FORMULA.search((ROOT / "docs" / "operations.md").read_text())
    assert found is not None, "the page has no formula any more"
    least = procs + int(found[1]) - (0 if endpoint else 1)
    return least, least + procs * trx_pool_size
