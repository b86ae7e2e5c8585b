"""How many connections a runner takes, as docs/operations.md says it."""

from __future__ import annotations

SUPERVISOR = 3
ENDPOINT = 1


def of_a_runner(procs: int, trx_pool_size: int, *, endpoint: bool) -> tuple[int, int]:
    """The least and the most.

    Args:
        procs: its workers.
        trx_pool_size: connections that each worker may lend to steps.
        endpoint: it serves HTTP.
    """
    least = procs + SUPERVISOR + (ENDPOINT if endpoint else 0)
    return least, least + procs * trx_pool_size
