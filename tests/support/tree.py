"""A process tree of stand-ins, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, is_alive

_NOWHERE = Database("postgresql://nobody@127.0.0.1:1/nowhere")


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """The directory that tells the stand-ins what to do, and in which they tell what they did."""
    return tmp_path


@pytest.fixture
def fleet(orders: Path) -> Iterator[Fleet]:
    """A runner of two stand-ins."""
    with stand_ins(orders) as running:
        yield running


def stand_ins(
    orders: Path,
    *,
    procs: int = 2,
    shutdown: float = 30.0,
    stall: float = 60.0,
    within: tuple[str, ...] = (),
    terminal: int | None = None,
    **options: Any,
) -> Fleet:
    """A runner whose children touch no database; the files in `orders` tell them what to do.

    Args:
        options: further fields of RunnerOptions.
    """
    return Fleet(
        _NOWHERE,
        procs=procs,
        config={"shutdown_timeout": shutdown},
        options={"stall_timeout": stall, **options},
        children="tests.support.stand_in",
        environment={"STAND_IN": str(orders)},
        within=within,
        terminal=terminal,
    )


def living(orders: Path, kind: str) -> list[int]:
    """Living processes of a kind, in order of age."""
    pids = (int(path.name.rpartition("-")[2]) for path in orders.glob(f"{kind}-*"))
    return sorted(pid for pid in pids if is_alive(pid))


async def workers_of(orders: Path, count: int = 2) -> list[int]:
    """The workers, once so many are ready."""

    async def there() -> list[int]:
        found = living(orders, "worker")
        return found if len(found) == count else []

    return await eventually(there)


async def control_of(orders: Path) -> int:
    """Control, once it is there."""
    return (await eventually(lambda: living(orders, "control")))[0]


def deaths_in(orders: Path) -> list[str]:
    """What control heard: number, worker ids, what ran."""
    path = orders / "deaths"
    return path.read_text().splitlines() if path.exists() else []


def order(orders: Path, name: str, text: str = "") -> None:
    """Tell the stand-ins something; they never read half of it."""
    draft = orders / ".draft"
    draft.write_text(text)
    draft.rename(orders / name)
