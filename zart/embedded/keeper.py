"""The last one out stops the server: a tiny process beside the users of an embedded PostgreSQL.

Each process that uses a server holds a shared lock on its `users.lock`, which the kernel drops when the process ends,
however it ends. A keeper waits for the exclusive lock; having it means that nobody is left, so it stops the server and,
if the server is temporary, removes it. Every user starts a keeper; the one that has `keeper.lock` stays.

It runs as a script (`python -I -S keeper.py ...`) on the standard library alone, so it is small and starts at once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

DATA = "pgdata"
USERS_LOCK = "users.lock"
KEEPER_LOCK = "keeper.lock"


def postmaster_lines(data: Path) -> list[str]:
    """postmaster.pid: pid, data directory, start time, port, socket directory, host, memory, status; [] if missing."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def stop_server(directory: Path, pg_ctl: Path, uid: int | None, gid: int | None, *, temporary: bool) -> None:
    """Stop the server of `directory` if one runs; remove its socket directory and, if `temporary`, `directory` itself.

    The caller holds the exclusive lock on `users.lock`.
    """
    data = directory / DATA
    lines = postmaster_lines(data)
    if lines:
        subprocess.run(
            [str(pg_ctl), "stop", "-D", str(data), "-m", "immediate" if temporary else "fast", "-w", "-t", "60"],
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    if len(lines) > 4 and os.path.basename(lines[4]).startswith("zart-"):
        shutil.rmtree(lines[4], ignore_errors=True)
    if temporary:
        shutil.rmtree(directory, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Wait until nobody uses the server, then stop it."""
    directory, pg_ctl = Path(arguments[0]), Path(arguments[1])
    uid, gid, temporary = int(arguments[2]), int(arguments[3]), arguments[4] == "temporary"
    try:
        users = os.open(directory / USERS_LOCK, os.O_RDWR)
        keeper = os.open(directory / KEEPER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(keeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):  # all is over, or another keeper waits
        return
    fcntl.flock(users, fcntl.LOCK_EX)
    os.close(keeper)  # before the users' lock: whoever comes next brings a keeper, which must find this one gone
    if temporary and not (directory / USERS_LOCK).exists():
        return
    stop_server(directory, pg_ctl, uid if uid >= 0 else None, gid if gid >= 0 else None, temporary=temporary)


if __name__ == "__main__":
    main(sys.argv[1:])
