"""The benchmarks: that a run measures what it says, kept in the shape that comparisons read."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench import growth, native
from bench.scenarios import SCENARIOS

EXECUTIONS = 300
ROOT = Path(__file__).parents[2]

MEASURED = {
    "seconds", "executions_per_second", "steps_per_second", "server_cpu_us", "worker_cpu_us", "supervisor_cpu_us",
    "wal_bytes", "commits", "statements", "rows_written", "other_cores", "rows_per_tick", "tick_ms",
    "claim_latency_p50_s", "claim_latency_p99_s",
}  # fmt: skip


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module", params=sorted(SCENARIOS))
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run of each scenario keeps; it succeeds only if all executions completed, each step kept once."""
    directory = tmp_path_factory.mktemp("results")
    options = ("--executions", str(EXECUTIONS), "--repeats", "1", "--batch", "50", "--results", str(directory))
    done = bench("run", request.param, *options)
    assert done.returncode == 0, done.stderr
    assert "floor_ratio" in done.stdout
    (file,) = directory.iterdir()
    assert file.name.startswith(request.param)
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def test_a_run_keeps_floor_and_engine_of_every_repeat(kept: dict[str, Any]) -> None:
    assert kept["executions"] == EXECUTIONS
    assert kept["procs"] == 2
    (repeat,) = kept["repeats"]
    for side in ("floor", "engine"):
        assert set(repeat[side]) == MEASURED
        assert repeat[side]["executions_per_second"] == pytest.approx(EXECUTIONS / repeat[side]["seconds"])
    assert kept["floor_ratio"] == pytest.approx(kept["ratios"][0])
    assert kept["medians"]["engine"]["rows_per_tick"] > 0


def test_the_engine_writes_no_row_more_than_the_floor(kept: dict[str, Any]) -> None:
    steps = len(SCENARIOS[kept["scenario"]].steps)
    (repeat,) = kept["repeats"]
    assert repeat["floor"]["rows_written"] == 3 + steps  # claim, steps, queue row gone, record ended
    # Its two workers' own rows and the marks that control sets are the rest.
    assert repeat["engine"]["rows_written"] == pytest.approx(3 + steps, abs=100 / EXECUTIONS)


def test_a_result_names_settings_and_versions_but_neither_hosts_nor_paths(kept: dict[str, Any]) -> None:
    assert kept["settings"]["fsync"] == kept["settings"]["synchronous_commit"] == "on"
    assert kept["versions"]["postgresql"].startswith("18")
    assert kept["machine"]["cores"] >= 1
    facts = json.dumps(kept)
    assert str(ROOT) not in facts
    assert tempfile.gettempdir() not in facts
    assert socket.gethostname() not in re.split(r"[^\w.-]+", facts)


def test_the_list_names_every_scenario() -> None:
    done = bench("list")
    assert done.returncode == 0
    for name in SCENARIOS:
        assert name in done.stdout


def test_an_unknown_scenario_is_refused_with_the_names_there_are() -> None:
    done = bench("run", "ten-step")
    assert done.returncode == 2
    assert "five-step" in done.stderr
    assert "Traceback" not in done.stderr


def test_growth_is_timed_for_each_kind_of_execution() -> None:
    found = list(growth.points(1, counts=(3,)))
    assert [(point.what, point.slots) for point in found] == [
        ("one-after-the-other", 256),
        ("side-by-side", 256),
        ("scheduled", 256),
        ("scheduled", 1),
    ]
    assert all(len(point.seconds) == 1 and point.microseconds > 0 for point in found)


def test_the_native_calls_of_an_execution_are_timed() -> None:
    parts = native.parts()
    assert len(parts) == 4
    assert all(0 < part.microseconds < 1000 for part in parts)
