"""The arbiter's process tree, with children that touch no database."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.fleet import Fleet, is_alive
from tests.support.tree import control_of, deaths_in, living, stand_ins, workers_of


async def test_a_dead_worker_is_reported_and_replaced(fleet: Fleet, orders: Path) -> None:
    first, second = await workers_of(orders)
    worker_id = (orders / f"worker-{first}").read_text()
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: deaths_in(orders))
    assert deaths_in(orders) == [f"1 5,{worker_id} [7]"]
    await eventually(lambda: second in living(orders, "worker") and len(living(orders, "worker")) == 2)
    assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 1, "FORKS": 3})


async def test_deaths_are_told_to_the_next_control_until_one_acknowledges(fleet: Fleet, orders: Path) -> None:
    (orders / "forgetful").touch()
    workers, control = await workers_of(orders), await control_of(orders)
    os.kill(workers[0], signal.SIGKILL)
    await eventually(lambda: len(deaths_in(orders)) == 1)
    (orders / "forgetful").unlink()
    os.kill(control, signal.SIGKILL)
    await eventually(lambda: len(deaths_in(orders)) == 2)
    assert len(set(deaths_in(orders))) == 1
    assert fleet.stop()[0] == 0
    assert [death for death in deaths_in(orders) if death.startswith("1 ")] == deaths_in(orders)[:2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_stop_signal_ends_all(fleet: Fleet, orders: Path, number: signal.Signals) -> None:
    await workers_of(orders)
    members = fleet.members()
    assert len(members) == 3
    fleet.send(number)
    assert fleet.end()[0] == 0
    assert not any(is_alive(pid) for pid in members)


async def test_control_hears_of_the_last_workers_before_it_ends(fleet: Fleet, orders: Path) -> None:
    await workers_of(orders)
    assert fleet.stop()[0] == 0
    assert len(deaths_in(orders)) == 2


async def test_a_second_stop_signal_kills_workers_and_blames_nobody(orders: Path) -> None:
    (orders / "stubborn").touch()
    with stand_ins(orders) as fleet:
        await workers_of(orders)
        fleet.send(signal.SIGTERM)
        await eventually(lambda: "stopping" in fleet.log())
        assert fleet.process.poll() is None
        fleet.send(signal.SIGTERM)
        assert fleet.end(10)[0] == 0
    assert [death.partition("[")[2] for death in deaths_in(orders)] == ["]", "]"]


async def test_workers_that_do_not_end_in_time_are_killed(orders: Path) -> None:
    (orders / "stubborn").touch()
    with stand_ins(orders, shutdown=0) as fleet:
        await workers_of(orders)
        code, _, log = fleet.stop(15)
        assert code == 0
        assert "out of time" in log


async def test_no_child_outlives_an_arbiter_that_was_killed(fleet: Fleet, orders: Path) -> None:
    await workers_of(orders)
    members = fleet.members()
    fleet.send(signal.SIGKILL)
    await eventually(lambda: not any(is_alive(pid) for pid in members))


async def test_what_a_terminal_sends_to_all_is_the_arbiters_business_alone(fleet: Fleet, orders: Path) -> None:
    workers, control = await workers_of(orders), await control_of(orders)
    for pid in (*workers, control):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    fleet.send(signal.SIGTERM)
    code, words, _ = fleet.end()
    assert (code, words["DEATHS"]) == (0, 0)


async def test_workers_hold_no_end_of_the_arbiters_pipes(fleet: Fleet, orders: Path) -> None:
    workers, control = await workers_of(orders), await control_of(orders)
    wakes = {pid: _files(pid).count("anon_inode:[eventfd]") for pid in (*workers, control)}
    assert wakes == {workers[0]: 1, workers[1]: 1, control: 18}  # as many as there may be workers
    assert not any("socket" in name for pid in workers for name in _files(pid))
    inherited = [name for name in _files(fleet.pid) if name.startswith("pipe:")]
    own = [name for name in inherited if inherited.count(name) == 2]  # both ends of the signals' pipe
    assert own
    assert not any(name in own for pid in (*workers, control) for name in _files(pid))


def _files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]


async def test_a_failed_probe_ends_with_its_one_line(orders: Path) -> None:
    (orders / "fail").write_text("the app cannot be used; do this")
    with stand_ins(orders) as fleet:
        code, words, errors = fleet.end()
    assert (code, words["FORKS"], errors) == (2, 0, "zart-runner: the app cannot be used; do this\n")


async def test_workers_that_cannot_start_end_the_runner_with_their_reason(orders: Path) -> None:
    (orders / "unable").write_text("the lifespan failed; do that")
    with stand_ins(orders) as fleet:
        code, _, errors = fleet.end()
    assert code == 3
    assert "\nzart-runner: the lifespan failed; do that\n" in errors
    assert "Traceback" not in errors


async def _is_gone(pid: int) -> None:
    await eventually(lambda: not is_alive(pid))


async def test_workers_that_were_at_work_before_they_failed_are_made_again(orders: Path) -> None:
    with stand_ins(orders, procs=1) as fleet:
        for _ in range(4):  # more often than workers may fail to start
            [worker] = await workers_of(orders, 1)
            (orders / f"broken-{worker}").write_text("the database cannot run zart's statements")
            await _is_gone(worker)
        await workers_of(orders, 1)
        assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 4, "FORKS": 5})


async def test_a_child_that_dies_again_and_again_is_made_again_ever_later(fleet: Fleet, orders: Path) -> None:
    for deaths in range(1, 4):
        first = (await workers_of(orders))[-1]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda deaths=deaths: len(deaths_in(orders)) == deaths)  # type: ignore[misc]
    await workers_of(orders)
    assert fleet.stop()[1]["DEATHS"] == 3
