"""Files of the application's own metrics, where something else is in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from zart.runner.values import DIRECTORY, SharedValues


def test_what_a_dead_worker_left_and_cannot_be_removed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    values = SharedValues()
    (tmp_path / "gauge_liveall_3.db").mkdir()
    values.forget(3)
    values.close()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "what worker 3 told of the application last cannot be taken back"
    ]
