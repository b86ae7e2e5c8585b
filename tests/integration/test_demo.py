"""`zart demo`, end to end: a PostgreSQL of its own, workers, a SIGKILL, and a check that can fail."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from zart.cli.audit import Audit, execution_id_of, number_of
from zart.cli.demo import Kill, report
from zart.cli.onboarding import expected_steps
from zart.model import StoredStatus
from zart.store.audit import AuditedExecution

COMMAND = [sys.executable, "-c", "from zart.cli.main import main; main()", "demo"]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=300)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(fact: Callable[[], bool], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline, "the fact did not come true in time"
        time.sleep(0.02)


def test_a_killed_worker_loses_nothing_and_the_summary_and_the_figure_say_so(tmp_path: Path) -> None:
    done = demo("--executions", "4000", "--procs", "2", "--plot", str(tmp_path / "demo.svg"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed worker" in done.stdout
    assert re.search(r"completed +4,000 of 4,000", done.stdout)
    assert re.search(r"right step results +20,000 of 20,000, found 20,000", done.stdout)
    assert re.search(r"taken over +[1-9]\d* executions", done.stdout)
    assert re.search(r"ran again +\d+\.\d{3} s after the kill", done.stdout)
    assert done.stdout.endswith("check passed\n")
    assert done.stderr == ""
    killed = re.search(r"while it held ([\d,]+) execution", done.stdout)
    assert killed is not None
    assert f">worker killed, holding {killed[1]}</text>" in (tmp_path / "demo.svg").read_text()


def test_it_runs_with_one_execution_and_one_worker() -> None:
    done = demo("--executions", "1", "--procs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n1 execution of five steps started" in done.stdout
    assert "check passed" in done.stdout


@pytest.mark.parametrize("arguments", [["--procs", "0"], ["--executions", "0"], ["--executions", "many"]])
def test_numbers_that_cannot_be_are_one_line(arguments: list[str]) -> None:
    done = demo(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_it_is_ended_by(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "--executions", "200000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().split()[-1])
        postmaster = int((directory / "pgdata" / "postmaster.pid").read_text().split()[0])
        while "of 200,000" not in process.stdout.readline():  # the workers are at work
            assert process.poll() is None
        workers = children_of(process.pid)
        process.send_signal(number)
    assert len(workers) >= 3  # the arbiter, and its children
    until(lambda: not directory.exists() and not any(is_alive(pid) for pid in (postmaster, *workers)))


def children_of(pid: int) -> list[int]:
    """All processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    below = [child for child, parent in parents.items() if parent == pid]
    return below + [lower for child in below for lower in children_of(child)]


# The check itself


def right(number: int) -> AuditedExecution:
    """An execution as it must be."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    steps = expected_steps(number)
    return AuditedExecution(
        execution_id=execution_id_of(number),
        status=StoredStatus.COMPLETED,
        epoch=1,
        output=orjson.dumps(steps["provision-workspace"]).decode(),
        steps=tuple((name, orjson.dumps(value).decode()) for name, value in steps.items()),
        started_at=now,
        finished_at=now,
        again_at=None,
    )


def audit_of(*found: AuditedExecution) -> Audit:
    audit = Audit(2)
    for each in found:
        audit.add(each)
    return audit


def test_the_check_passes_when_all_is_right() -> None:
    assert audit_of(right(0), right(1)).passed


@pytest.mark.parametrize(
    "wrong",
    [
        replace(right(1), status=StoredStatus.LIVE, output=None),
        replace(right(1), status=StoredStatus.FAILED, output=None),
        replace(right(1), output='"workspace-of-another"'),
        replace(right(1), output=None),
        replace(right(1), steps=right(1).steps[1:]),
        replace(right(1), steps=(*right(1).steps, ("one-more", "1"))),
        replace(right(1), steps=(*right(1).steps[1:], right(1).steps[1])),
        replace(right(1), steps=(*right(1).steps[1:], ("verify-email", '"another@example.com"'))),
        replace(right(1), steps=(*right(1).steps[1:], ("verify-email", None))),
        right(0),
        right(2),
    ],
)
def test_the_check_fails_for(wrong: AuditedExecution) -> None:
    audit = audit_of(right(0), wrong)
    assert not audit.passed
    assert audit.faults


def test_the_check_fails_when_one_is_missing() -> None:
    assert not audit_of(right(0)).passed


def test_the_check_counts_those_that_another_worker_took_over() -> None:
    later = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    audit = audit_of(right(0), replace(right(1), epoch=2, again_at=later))
    assert (audit.taken_over, audit.again_at) == (1, later)


KILL = Kill(pid=1, held=3, done=1, at=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("epochs", "line"),
    [
        ((2, 2, 2), "taken over            3 executions of the killed worker"),
        ((2, 1, 1), "taken over            1 execution of the killed worker; 2 more had ended before the takeover"),
        ((1, 1, 1), "taken over            none: what the worker held had ended before the takeover (3 executions)"),
    ],
)
def test_the_summary_accounts_for_all_that_the_killed_worker_held(epochs: tuple[int, ...], line: str) -> None:
    audit = Audit(3)
    for number, epoch in enumerate(epochs):
        audit.add(replace(right(number), epoch=epoch, again_at=KILL.at if epoch > 1 else None))
    shown = StringIO()
    report(audit, KILL, Console(file=shown))
    assert line in [text.strip() for text in shown.getvalue().splitlines()]
    assert shown.getvalue().endswith("check passed\n")


def test_ids_and_numbers_belong_together() -> None:
    assert [number_of(execution_id_of(number)) for number in (0, 7, 9_999_999)] == [0, 7, 9_999_999]
