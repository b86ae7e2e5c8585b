"""What `ps` shows of zart's processes: which one it is, and nothing that was typed, as that may hold a password."""

from __future__ import annotations

from setproctitle import setproctitle

RUNNER = "zart-runner"


def show_process(name: str, of: str = RUNNER) -> None:
    """Have the system's lists of processes call this one so: `zart-runner: worker 3`. What was typed is gone there."""
    setproctitle(f"{of}: {name}" if name else of)
