"""How the arbiter keeps a fleet whole: stalls, recycling, reloads, size, failed starts. No child uses a database."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.fleet import Fleet, is_alive
from tests.support.tree import control_of, deaths_in, living, order, stand_ins, workers_of
from zart.runner.recycling import resident_bytes


async def _replaced(orders: Path, old: list[int]) -> list[int]:
    """As many workers as there were, once none of these is left."""

    async def others() -> list[int]:
        found = living(orders, "worker")
        return found if len(found) == len(old) and not set(found) & set(old) else []

    return await eventually(others)


async def _logged(fleet: Fleet, text: str) -> None:
    await eventually(lambda: text in fleet.log())


def _company(orders: Path) -> list[int]:
    return [int(line) for line in (orders / "company").read_text().split()]


# Stalls


@pytest.mark.parametrize("how", ["asleep", "computing"])
async def test_a_stalled_worker_is_reported_with_its_stack_then_killed(orders: Path, how: str) -> None:
    with stand_ins(orders, stall=1.5, log_format="json") as fleet:
        stalled, other = await workers_of(orders)
        worker_id = int((orders / f"worker-{stalled}").read_text())
        order(orders, f"still-{stalled}", how)
        await _logged(fleet, "is killed")
        await eventually(lambda: deaths_in(orders))
        assert deaths_in(orders) == [f"1 5,{worker_id} [7]"]
        assert is_alive(other)
        lines = [json.loads(line) for line in fleet.log().splitlines()]
    [report] = [line for line in lines if "is killed" in line["event"]]
    assert f"process {stalled}" in report["event"]
    assert "while execution 7 ran" in report["event"]
    assert (report["worker"], report["worker_id"], report["worker_pid"]) == (0, worker_id, stalled)
    assert report["executions"] == [7]
    assert 1.5 <= report["blocked_seconds"] < 5.0
    stack = report["stack"].splitlines()
    assert stack[0].startswith("Current thread")
    assert [line.rpartition(" in ")[2] for line in stack[-3:]] == ["stand_still", "_work", "worker"]
    events = [line["event"] for line in lines]
    assert events.index(report["event"]) < events.index("worker 0 ended (signal SIGKILL)")


async def test_a_stopped_worker_is_killed_without_a_stack(orders: Path) -> None:
    with stand_ins(orders, stall=1.5) as fleet:
        stopped, _ = await workers_of(orders)
        os.kill(stopped, signal.SIGSTOP)
        await eventually(lambda: deaths_in(orders))
        assert "it gave no stack: it is stopped" in fleet.log()
        assert not is_alive(stopped)


async def test_all_stalled_workers_are_reported_each_with_its_own_stack(orders: Path) -> None:
    with stand_ins(orders, stall=1.5, log_format="json") as fleet:
        pids = await workers_of(orders)
        for pid in pids:
            order(orders, f"still-{pid}")
        await eventually(lambda: len(deaths_in(orders)) == 2)
        reports = [line for line in map(json.loads, fleet.log().splitlines()) if "is killed" in line["event"]]
    assert sorted(report["worker_pid"] for report in reports) == pids
    assert [report["stack"].count("in stand_still") for report in reports] == [1, 1]


# Recycling


async def test_workers_are_recycled_by_age_one_at_a_time(orders: Path) -> None:
    with stand_ins(orders, procs=3, max_age=1.0) as fleet:
        old = await workers_of(orders, 3)
        # How many live at one moment tells nothing: on a slow machine there is always one that is being replaced.
        await eventually(lambda: not any(map(is_alive, old)) and len(list(orders.glob("worker-*"))) >= 6)
        company = _company(orders)[3:]  # without the first forks
        code, words, log = fleet.stop()
    assert (code, words["DEATHS"]) == (0, 0)
    assert words["FORKS"] >= 6
    assert "is replaced (its age)" in log
    assert set(company) == {2}
    assert {death.partition("[")[2] for death in deaths_in(orders)} == {"]"}


async def test_a_worker_that_has_served_enough_is_recycled_and_no_other(orders: Path) -> None:
    with stand_ins(orders, max_executions=100) as fleet:
        served, other = await workers_of(orders)
        order(orders, f"served-{other}", "80")
        order(orders, f"served-{served}", "100")
        await eventually(lambda: not is_alive(served))
        assert other in await workers_of(orders)
        code, words, log = fleet.stop()
    assert (code, words) == (0, {"TAKEN_OVER": 0, "DEATHS": 0, "FORKS": 3})
    assert "worker 0 is replaced (100 executions served)" in log


async def test_a_worker_that_has_grown_too_large_is_recycled_once_it_has_served_something(orders: Path) -> None:
    limit = 150 * 2**20
    with stand_ins(orders, max_rss=limit, max_executions=10) as fleet:
        fat, other = await workers_of(orders)
        order(orders, f"fat-{fat}", str(limit))
        await eventually(lambda: resident_bytes(fat) > limit)
        order(orders, f"served-{other}", "10")  # the arbiter looks at it after it has looked at the large one
        await eventually(lambda: not is_alive(other))
        assert fat in await workers_of(orders)
        order(orders, f"served-{fat}", "1")
        await eventually(lambda: not is_alive(fat))
        assert fleet.stop()[1]["DEATHS"] == 0
        assert "MiB of memory)" in fleet.log()


async def test_a_recycled_worker_that_does_not_end_in_time_is_killed(orders: Path) -> None:
    order(orders, "stubborn")
    with stand_ins(orders, procs=1, shutdown=0, max_executions=1) as fleet:
        [worker] = await workers_of(orders, 1)
        order(orders, f"served-{worker}", "1")
        await _replaced(orders, [worker])
        assert "worker 0 is killed (out of time)" in fleet.log()
        assert fleet.stop()[1]["DEATHS"] == 0
    assert deaths_in(orders)[0].endswith("[]")


# Reloading


async def test_sighup_replaces_the_workers_one_at_a_time(orders: Path) -> None:
    with stand_ins(orders, procs=3) as fleet:
        old = await workers_of(orders, 3)
        fleet.send(signal.SIGHUP)
        await _replaced(orders, old)
        await _logged(fleet, "reloaded: 3 workers with the new code")
        assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 0, "FORKS": 6})
    assert _company(orders)[3:-3] == [2] * 6


async def test_workers_stay_when_the_new_code_cannot_be_used(fleet: Fleet, orders: Path) -> None:
    old = await workers_of(orders)
    order(orders, "fail", "importing the app failed: SyntaxError")
    fleet.send(signal.SIGHUP)
    await _logged(fleet, "not reloaded, the workers keep the old code: importing the app failed")
    assert living(orders, "worker") == old
    (orders / "fail").unlink()
    fleet.send(signal.SIGHUP)
    await _replaced(orders, old)


async def test_workers_stay_when_the_first_with_new_code_cannot_start(fleet: Fleet, orders: Path) -> None:
    first, second = await workers_of(orders)
    order(orders, "unable", "the lifespan failed")
    fleet.send(signal.SIGHUP)
    await _logged(fleet, "the other workers keep the old code: the lifespan failed")
    assert living(orders, "worker") == [second]
    (orders / "unable").unlink()
    fleet.send(signal.SIGHUP)
    await _replaced(orders, [first, second])
    assert fleet.stop()[0] == 0


async def test_a_preloaded_runner_says_that_it_cannot_reload(orders: Path) -> None:
    with stand_ins(orders, preload=True) as fleet:
        old = await workers_of(orders)
        fleet.send(signal.SIGHUP)
        await _logged(fleet, "not reloaded: under --preload")
        assert living(orders, "worker") == old
        assert fleet.stop()[1]["FORKS"] == 2


async def test_a_hang_up_of_the_terminal_stops_the_runner(orders: Path) -> None:
    master, slave = os.openpty()
    # `setsid --ctty` makes it the controlling terminal; --wait hands the exit code on.
    with stand_ins(orders, within=("setsid", "--fork", "--wait", "--ctty"), terminal=slave) as fleet:
        os.close(slave)
        members = await eventually(lambda: fleet.members() if living(orders, "worker") else [])
        os.close(master)
        assert fleet.process.wait(20) == 0
    assert not any(is_alive(pid) for pid in members)


# Size


async def test_sigttin_and_sigttou_grow_and_shrink_the_fleet(fleet: Fleet, orders: Path) -> None:
    first, second = await workers_of(orders)
    fleet.send(signal.SIGTTIN)
    await workers_of(orders, 3)
    fleet.send(signal.SIGTTIN)
    await workers_of(orders, 4)
    for left in (3, 2, 1):
        fleet.send(signal.SIGTTOU)
        await workers_of(orders, left)
    assert living(orders, "worker") == [first]
    fleet.send(signal.SIGTTOU)
    await _logged(fleet, "the last worker stays")
    assert is_alive(first)
    fleet.send(signal.SIGTTIN)
    assert len(await workers_of(orders)) == 2
    assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 0, "FORKS": 5})
    assert not is_alive(second)


async def test_a_worker_that_shrinking_took_away_stays_away(fleet: Fleet, orders: Path) -> None:
    first, _ = await workers_of(orders)
    fleet.send(signal.SIGTTOU)
    assert await workers_of(orders, 1) == [first]
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: first not in living(orders, "worker") and len(living(orders, "worker")) == 1)
    assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 1, "FORKS": 3})


async def test_growing_ends_where_the_board_does(orders: Path) -> None:
    with stand_ins(orders, procs=1) as fleet:
        await workers_of(orders, 1)
        for count in range(2, 18):
            fleet.send(signal.SIGTTIN)
            await _logged(fleet, f"growing to {count} workers")
        fleet.send(signal.SIGTTIN)
        await _logged(fleet, "no room for more than 17 workers")
        assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 0, "FORKS": 17})


# Failed starts


async def test_workers_that_are_killed_before_they_are_at_work_end_the_runner(orders: Path) -> None:
    order(orders, "crash")
    with stand_ins(orders) as fleet:
        code, words, errors = fleet.end()
    assert code == 3
    assert 6 <= words["FORKS"] <= 10
    assert "\nzart-runner: workers end before they are at work, the last one with signal SIGKILL\n" in errors


async def test_a_control_that_cannot_start_ends_the_runner(orders: Path) -> None:
    with stand_ins(orders, procs=1) as fleet:
        await workers_of(orders, 1)
        order(orders, "uncontrolled")
        os.kill(await control_of(orders), signal.SIGKILL)
        code, _, errors = fleet.end()
    assert code == 3
    assert "\nzart-runner: control ends before it is at work, the last one with exit code 1\n" in errors


async def test_one_worker_at_work_keeps_the_runner_going(fleet: Fleet, orders: Path) -> None:
    first, second = await workers_of(orders)
    order(orders, "crash")
    os.kill(second, signal.SIGKILL)
    await eventually(lambda: fleet.log().count("worker 1 ended") > 5)
    assert fleet.process.poll() is None
    assert is_alive(first)
    (orders / "crash").unlink()
    assert len(await workers_of(orders)) == 2
    assert fleet.stop()[0] == 0


async def test_a_database_that_is_away_ends_no_runner(orders: Path) -> None:
    order(orders, "away")
    with stand_ins(orders) as fleet:
        await eventually(lambda: fleet.log().count("ended (exit code 4)") >= 12)
        (orders / "away").unlink()
        await workers_of(orders)
        assert fleet.stop()[0] == 0


# The first process of a container


async def test_as_process_1_it_reaps_orphans_and_stops_on_a_signal(orders: Path) -> None:
    order(orders, "orphans")
    with stand_ins(orders, within=_in_a_namespace()) as fleet:
        await eventually(lambda: len(list(orders.glob("orphan-*"))) == 2 and len(fleet.members()) == 3)
        await eventually(lambda: not _zombies(fleet.pid))
        code, words, _ = fleet.stop()
    assert (code, words) == (0, {"TAKEN_OVER": 0, "DEATHS": 0, "FORKS": 2})
    assert len(deaths_in(orders)) == 2


def _in_a_namespace() -> tuple[str, ...]:
    command = ("unshare", "--pid", "--fork", "--mount-proc")
    tried = os.spawnlp(os.P_WAIT, command[0], *command, "true")
    if tried:
        pytest.skip("this system lets nobody make a namespace of processes here")
    return command


def _zombies(parent: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "stat").exists():
            state, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(owner) == parent:
                found.append(int(entry.name))
    return found
