"""The arbiter's process tree, with children that touch no database."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, is_alive

NOWHERE = Database("postgresql://nobody@127.0.0.1:1/nowhere")


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """The directory that tells the stand-ins what to do, and in which they tell what they did."""
    return tmp_path


def _fleet(orders: Path, *, procs: int = 2, shutdown: float = 30.0, stuck: float = 60.0) -> Fleet:
    return Fleet(
        NOWHERE,
        procs=procs,
        config={"shutdown_timeout": shutdown},
        options={"stuck_timeout": stuck},
        children="tests.support.stand_in",
        environment={"STAND_IN": str(orders)},
    )


@pytest.fixture
def fleet(orders: Path) -> Iterator[Fleet]:
    with _fleet(orders) as running:
        yield running


def _of(orders: Path, kind: str) -> list[int]:
    """Living processes of a kind, in order of age."""
    pids = (int(path.name.rpartition("-")[2]) for path in orders.glob(f"{kind}-*"))
    return sorted(pid for pid in pids if is_alive(pid))


async def _workers(orders: Path, count: int = 2) -> list[int]:
    async def there() -> list[int]:
        found = _of(orders, "worker")
        return found if len(found) == count else []

    return await eventually(there)


async def _control(orders: Path) -> int:
    return (await eventually(lambda: _of(orders, "control")))[0]


def _deaths(orders: Path) -> list[str]:
    path = orders / "deaths"
    return path.read_text().splitlines() if path.exists() else []


async def test_a_dead_worker_is_reported_and_replaced(fleet: Fleet, orders: Path) -> None:
    first, second = await _workers(orders)
    worker_id = (orders / f"worker-{first}").read_text()
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: _deaths(orders))
    assert _deaths(orders) == [f"1 5,{worker_id} [7]"]
    await eventually(lambda: second in _of(orders, "worker") and len(_of(orders, "worker")) == 2)
    assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 1, "FORKS": 3})


async def test_deaths_are_told_to_the_next_control_until_one_acknowledges(fleet: Fleet, orders: Path) -> None:
    (orders / "forgetful").touch()
    workers, control = await _workers(orders), await _control(orders)
    os.kill(workers[0], signal.SIGKILL)
    await eventually(lambda: len(_deaths(orders)) == 1)
    (orders / "forgetful").unlink()
    os.kill(control, signal.SIGKILL)
    await eventually(lambda: len(_deaths(orders)) == 2)
    assert len(set(_deaths(orders))) == 1
    assert fleet.stop()[0] == 0
    assert [death for death in _deaths(orders) if death.startswith("1 ")] == _deaths(orders)[:2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
async def test_a_stop_signal_ends_all(fleet: Fleet, orders: Path, number: signal.Signals) -> None:
    await _workers(orders)
    members = fleet.members()
    assert len(members) == 3
    fleet.send(number)
    assert fleet.end()[0] == 0
    assert not any(is_alive(pid) for pid in members)


async def test_control_hears_of_the_last_workers_before_it_ends(fleet: Fleet, orders: Path) -> None:
    await _workers(orders)
    assert fleet.stop()[0] == 0
    assert len(_deaths(orders)) == 2


async def test_a_second_stop_signal_kills_workers_and_blames_nobody(orders: Path) -> None:
    (orders / "stubborn").touch()
    with _fleet(orders) as fleet:
        await _workers(orders)
        fleet.send(signal.SIGTERM)
        code, _, log = _after(fleet, "stopping")
        assert code is None, log
        fleet.send(signal.SIGTERM)
        assert fleet.end(10)[0] == 0
    assert [death.partition("[")[2] for death in _deaths(orders)] == ["]", "]"]


def _after(fleet: Fleet, text: str) -> tuple[int | None, None, str]:
    """Read the log up to a line that has this text."""
    assert fleet.process.stderr is not None
    seen = ""
    while text not in seen:
        line = fleet.process.stderr.readline()
        assert line, seen
        seen += line
    return fleet.process.poll(), None, seen


async def test_workers_that_do_not_end_in_time_are_killed(orders: Path) -> None:
    (orders / "stubborn").touch()
    with _fleet(orders, shutdown=0) as fleet:
        await _workers(orders)
        code, _, log = fleet.stop(15)
        assert code == 0
        assert "out of time" in log


async def test_no_child_outlives_an_arbiter_that_was_killed(fleet: Fleet, orders: Path) -> None:
    await _workers(orders)
    members = fleet.members()
    fleet.send(signal.SIGKILL)
    await eventually(lambda: not any(is_alive(pid) for pid in members))


async def test_a_terminals_interrupt_is_the_arbiters_business_alone(fleet: Fleet, orders: Path) -> None:
    workers, control = await _workers(orders), await _control(orders)
    for pid in (*workers, control):
        os.kill(pid, signal.SIGINT)
    fleet.send(signal.SIGTERM)
    code, words, _ = fleet.end()
    assert (code, words["DEATHS"]) == (0, 0)


async def test_workers_hold_no_end_of_the_arbiters_pipes(fleet: Fleet, orders: Path) -> None:
    workers, control = await _workers(orders), await _control(orders)
    wakes = {pid: _files(pid).count("anon_inode:[eventfd]") for pid in (*workers, control)}
    assert wakes == {workers[0]: 1, workers[1]: 1, control: 2}
    assert not any("socket" in name for pid in workers for name in _files(pid))
    inherited = [name for name in _files(fleet.pid) if name.startswith("pipe:")]
    own = [name for name in inherited if inherited.count(name) == 2]  # both ends of the signals' pipe
    assert own
    assert not any(name in own for pid in (*workers, control) for name in _files(pid))


def _files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]


async def test_a_failed_probe_ends_with_its_one_line(orders: Path) -> None:
    (orders / "fail").write_text("the app cannot be used; do this")
    with _fleet(orders) as fleet:
        code, words, errors = fleet.end()
    assert (code, words["FORKS"], errors) == (2, 0, "zart-runner: the app cannot be used; do this\n")


async def test_workers_that_cannot_start_end_the_runner_with_their_reason(orders: Path) -> None:
    (orders / "unable").write_text("the lifespan failed; do that")
    with _fleet(orders) as fleet:
        code, _, errors = fleet.end()
    assert code == 3
    assert "\nzart-runner: the lifespan failed; do that\n" in errors
    assert "Traceback" not in errors


async def _is_gone(pid: int) -> None:
    await eventually(lambda: not is_alive(pid))


async def test_workers_that_were_at_work_before_they_failed_are_made_again(orders: Path) -> None:
    with _fleet(orders, procs=1) as fleet:
        for _ in range(4):  # more often than workers may fail to start
            [worker] = await _workers(orders, 1)
            (orders / f"broken-{worker}").write_text("the database cannot run zart's statements")
            await _is_gone(worker)
        await _workers(orders, 1)
        assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 4, "FORKS": 5})


async def test_a_worker_whose_loop_stands_still_is_killed_and_what_ran_is_blamed(orders: Path) -> None:
    with _fleet(orders, stuck=1.0) as fleet:
        stuck, other = await _workers(orders)
        (orders / f"still-{stuck}").touch()
        await eventually(lambda: _deaths(orders))
        assert _deaths(orders)[0].endswith("[7]")
        assert is_alive(other)
        assert not is_alive(stuck)
        assert fleet.stop()[0] == 0


async def test_a_child_that_dies_again_and_again_is_made_again_ever_later(fleet: Fleet, orders: Path) -> None:
    for deaths in range(1, 4):
        first = (await _workers(orders))[-1]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda deaths=deaths: len(_deaths(orders)) == deaths)  # type: ignore[misc]
    await _workers(orders)
    assert fleet.stop()[1]["DEATHS"] == 3
