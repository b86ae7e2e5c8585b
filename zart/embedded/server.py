"""One embedded server: made, started or joined, and left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from zart.embedded import keeper
from zart.embedded.keeper import DATA, USERS_LOCK, postmaster_lines
from zart.embedded.programs import SYSTEM_HOME, Programs, closed_parent, find_programs, open_base
from zart.errors import DatabaseError, InvalidArgument

# Durable as in production: whatever is measured or killed here holds there too.
SETTINGS: Mapping[str, str] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "log_checkpoints": "off",
    "jit": "off",
    "timezone": "UTC",
}


def default_directory() -> Path:
    """Where a kept server lives unless told: the user's data directory, or `/var/lib/zart/postgres` for root."""
    if os.geteuid() == 0:
        return SYSTEM_HOME / "postgres"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "zart" / "postgres"


class EmbeddedPostgres:
    """One embedded server. Synchronous; `start()` takes about a second the first time, less after.

    Args:
        directory: where its data is kept, made if missing; None makes a temporary one that `stop()` removes.
        settings: PostgreSQL settings that are added to SETTINGS or replace them, as `{"work_mem": "64MB"}`. When the
            directory's server runs already, it keeps the settings it was started with.

    Raises (from `start()`):
        DatabaseError: the package is missing, the directory cannot be used, or PostgreSQL did not start.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.temporary = directory is None
        self.settings = {**SETTINGS, **(settings or {})}
        self._wanted = None if directory is None else Path(directory).expanduser().absolute()
        self._directory: Path | None = None
        self._programs: Programs | None = None
        self._users_lock = -1
        self._dsn = ""

    @property
    def directory(self) -> Path:
        """Where the server's files are. Only between `start()` and `stop()`."""
        if self._directory is None:
            raise InvalidArgument("this embedded PostgreSQL is not started; call start() or use it in `with`")
        return self._directory

    @property
    def dsn(self) -> str:
        """A postgresql:// URL of the running server, for asyncpg, psql and libpq."""
        if not self._dsn:
            raise InvalidArgument("this embedded PostgreSQL is not started; call start() or use it in `with`")
        return self._dsn

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return int(postmaster_lines(self.directory / DATA)[0])

    def start(self) -> EmbeddedPostgres:
        """Start the server, or join the one that runs on this directory already."""
        if self._dsn:
            return self
        self._programs = programs = find_programs()
        self._directory = directory = _make_directory(self._wanted, programs)
        try:
            self._users_lock = _lock(
                directory / USERS_LOCK, fcntl.LOCK_SH
            )  # waits while a last user's stop is under way
            self._start_keeper(directory, programs)
            with _locked(directory / "start.lock"):
                if not _answers(directory / DATA):
                    _make_cluster(directory, programs, temporary=self.temporary)
                    _start_server(directory, programs, self.settings)
            self._dsn = _dsn_of(directory / DATA)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Leave the server; the last one out stops it, and removes it if it is temporary. Safe to call twice."""
        directory, programs, lock = self._directory, self._programs, self._users_lock
        self._directory, self._programs, self._users_lock, self._dsn = None, None, -1, ""
        if directory is None or programs is None:
            return
        if lock < 0:
            if self.temporary:
                shutil.rmtree(directory, ignore_errors=True)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            keeper.stop_server(directory, programs.bin / "pg_ctl", programs.uid, programs.gid, temporary=self.temporary)
        except BlockingIOError:
            pass  # others use it; a keeper is waiting for them
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # explicit: a forked child may hold a copy of the descriptor
            os.close(lock)

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start_keeper(self, directory: Path, programs: Programs) -> None:
        """Start the process that stops the server when this one is gone; by a shell, so that it is no child of ours."""
        owner = [str(-1 if number is None else number) for number in (programs.uid, programs.gid)]
        lifetime = "temporary" if self.temporary else "kept"
        script = [sys.executable, "-I", "-S", keeper.__file__, str(directory), str(programs.bin / "pg_ctl")]
        command = f"{shlex.join([*script, *owner, lifetime])} </dev/null >/dev/null 2>&1 &"
        subprocess.run(["/bin/sh", "-c", command], start_new_session=True, cwd="/", check=True)


def _make_directory(wanted: Path | None, programs: Programs) -> Path:
    if wanted is None:
        directory = Path(tempfile.mkdtemp(prefix="zart-embedded-", dir=open_base(programs.uid)))
        directory.chmod(0o755 if programs.uid is not None else 0o700)
        return directory
    if wanted.exists() and not wanted.is_dir():
        raise DatabaseError(f"the embedded PostgreSQL needs a directory, and {wanted} is a file")
    if programs.uid is not None and (closed := closed_parent(wanted, programs.uid)) is not None:
        raise DatabaseError(
            f"PostgreSQL does not run as root, and its user cannot enter {closed}; choose a directory elsewhere,"
            f" such as {SYSTEM_HOME}/postgres, or run zart as another user"
        )
    try:
        for missing in reversed([path for path in (wanted, *wanted.parents) if not path.exists()]):
            missing.mkdir(exist_ok=True)
            missing.chmod(0o700 if programs.uid is None else 0o755)
    except OSError as error:
        raise DatabaseError(
            f"the directory {wanted} for the embedded PostgreSQL cannot be made: {error.strerror}"
        ) from error
    if not os.access(wanted, os.W_OK):
        raise DatabaseError(f"the directory {wanted} for the embedded PostgreSQL is not writable; choose another one")
    return wanted


def _make_cluster(directory: Path, programs: Programs, *, temporary: bool) -> None:
    data, making = directory / DATA, directory / f"{DATA}.making"
    if (data / "PG_VERSION").exists():
        return
    shutil.rmtree(making, ignore_errors=True)  # left by an initdb that was killed
    making.mkdir(mode=0o700)
    if programs.uid is not None and programs.gid is not None:
        os.chown(making, programs.uid, programs.gid)
    options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    made = programs.run("initdb", "-D", str(making), *options, *(["--no-sync"] if temporary else []))
    if made.returncode != 0:
        raise DatabaseError(f"the embedded PostgreSQL could not be made in {directory}: {_reason(made.stdout)}")
    making.rename(data)


def _start_server(directory: Path, programs: Programs, settings: Mapping[str, str]) -> None:
    _remove_stale_pid(directory / DATA)
    log = directory / "server.log"
    log.touch(mode=0o600)
    sockets = tempfile.mkdtemp(prefix="zart-", dir=open_base(programs.uid))
    if programs.uid is not None and programs.gid is not None:
        os.chown(sockets, programs.uid, programs.gid)
        os.chown(log, programs.uid, programs.gid)
    all_settings = {**settings, "unix_socket_directories": sockets}
    options = shlex.join(part for name, value in all_settings.items() for part in ("-c", f"{name}={value}"))
    started_at = log.stat().st_size
    started = programs.run(
        "pg_ctl", "start", "-w", "-t", "60", "-D", str(directory / DATA), "-l", str(log), "-o", options
    )
    if started.returncode != 0:
        shutil.rmtree(sockets, ignore_errors=True)
        with log.open(errors="replace") as lines:
            lines.seek(started_at)
            reason = _reason(lines.read() or started.stdout)
        raise DatabaseError(f"the embedded PostgreSQL in {directory} did not start: {reason}")


def _remove_stale_pid(data: Path) -> None:
    """Forget a server that was killed: its pid may be another process's by now, and PostgreSQL would not start."""
    lines = postmaster_lines(data)
    if not lines:
        return
    with contextlib.suppress(OSError):
        if os.fsencode(data) in Path(f"/proc/{int(lines[0])}/cmdline").read_bytes():
            return  # this directory's postmaster is starting or stopping; PostgreSQL itself will say so
    (data / "postmaster.pid").unlink(missing_ok=True)
    if len(lines) > 4 and os.path.basename(lines[4]).startswith("zart-"):
        shutil.rmtree(lines[4], ignore_errors=True)


def _answers(data: Path) -> bool:
    """Whether a server runs on `data` and takes connections."""
    lines = postmaster_lines(data)
    if len(lines) < 8 or lines[7].strip() != "ready":
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        except OSError:
            return False
    return True


def _dsn_of(data: Path) -> str:
    lines = postmaster_lines(data)
    return f"postgresql://postgres@/postgres?host={quote(lines[4], safe='/')}&port={lines[3]}"


def _reason(output: str) -> str:
    """The line of PostgreSQL's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL:" in line or "error:" in line or "ERROR:" in line]
    return (telling or lines or ["it gave no reason"])[-1]


def _lock(path: Path, operation: int) -> int:
    """An open descriptor of `path` with the lock; waits for it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, operation)
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.close(descriptor)  # removed with its directory while we waited


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    descriptor = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
