"""One embedded server: made, started or joined, and left."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from zart.embedded import keeper
from zart.embedded.keeper import DATA, USERS_LOCK, postmaster_lines
from zart.embedded.programs import SYSTEM_HOME, Programs, closed_parent, find_programs, open_base, socket_base
from zart.errors import DatabaseError, InvalidArgument

MAKING = f"{DATA}.making"

# "Do you speak SSL?" is answered in one byte. A connection alone proves nothing: the kernel makes it for a server that
# is being killed, too.
_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
_LONGEST_ANSWER = 10.0

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


def has_data(directory: str | os.PathLike[str]) -> bool:
    """Whether an embedded PostgreSQL has its data in this directory, or is being made there."""
    return any(os.path.lexists(Path(directory).expanduser() / name) for name in (DATA, MAKING))


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
    data, making = directory / DATA, directory / MAKING
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
    sockets = _make_sockets(directory, programs)
    _forget_killed(directory / DATA, sockets)
    log = directory / "server.log"
    log.touch(mode=0o600)
    if programs.uid is not None and programs.gid is not None:
        os.chown(log, programs.uid, programs.gid)
    all_settings = {**settings, "unix_socket_directories": str(sockets)}
    options = shlex.join(part for name, value in all_settings.items() for part in ("-c", f"{name}={value}"))
    started_at = log.stat().st_size
    started = programs.run(
        "pg_ctl", "start", "-w", "-t", "60", "-D", str(directory / DATA), "-l", str(log), "-o", options
    )
    if started.returncode != 0:
        if not postmaster_lines(directory / DATA):
            shutil.rmtree(sockets, ignore_errors=True)
        with log.open(errors="replace") as lines:
            lines.seek(started_at)
            reason = _reason(lines.read() or started.stdout)
        raise DatabaseError(f"the embedded PostgreSQL in {directory} did not start: {reason}")


def _make_sockets(directory: Path, programs: Programs) -> Path:
    """The private directory for the socket: always the same one, so that who had a connection finds the next server.

    Raises:
        DatabaseError: somebody else has a file of its name.
    """
    uid = os.geteuid() if programs.uid is None else programs.uid
    known_by = hashlib.sha256(os.fsencode(directory.resolve()) + b"/%d" % uid).hexdigest()[:16]
    sockets = Path(socket_base(programs.uid), f"zart-{known_by}")
    with contextlib.suppress(FileExistsError):
        sockets.mkdir(mode=0o700)
    found = sockets.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()) or found.st_mode & 0o077:
        raise DatabaseError(
            f"the embedded PostgreSQL needs {sockets} for its socket, and it is there but not private to its user;"
            " remove it"
        )
    if programs.uid is not None and programs.gid is not None:
        os.chown(sockets, programs.uid, programs.gid, follow_symlinks=False)
    return sockets


def _forget_killed(data: Path, sockets: Path) -> None:
    """Remove what a server left that was killed: its pid may be another process's by now, and none would start."""
    lines = postmaster_lines(data)
    if lines:
        with contextlib.suppress(OSError):
            if os.fsencode(data) in Path(f"/proc/{int(lines[0])}/cmdline").read_bytes():
                return  # this directory's postmaster is starting or stopping; PostgreSQL itself will say so
        (data / "postmaster.pid").unlink(missing_ok=True)
    for left in sockets.iterdir():
        left.unlink()


def _answers(data: Path) -> bool:
    """Whether a server runs on `data` and takes connections."""
    lines = postmaster_lines(data)
    if len(lines) < 8 or lines[7].strip() != "ready":
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_LONGEST_ANSWER)
        try:
            probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
            probe.sendall(_SSL_REQUEST)
            return bool(probe.recv(1))
        except OSError:
            return False


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
