"""No password of a database URL is shown: not in what zart prints or logs, nor in the system's list of processes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.support.eventually import eventually
from tests.support.servers import Server, a_server
from tests.support.shell import begin, kill, output_of, running
from zart.postgres.url import redacted

PASSWORD, ENCODED = "lily@p4d!fr0g", "lily%40p4d%21fr0g"
PARTS = ("lily", "p4d", "fr0g")
RUNNER = "zart-runner --app tests.support.telling:registry --procs 1 --log-level debug"


@dataclass(frozen=True)
class Guarded:
    """A server that asks the role "me" for its password."""

    server: Server

    def url(self, password: str = "", options: str = "") -> str:
        return f"postgresql://me{password and ':' + password}@127.0.0.1:{self.server.port}/postgres{options}"

    async def as_superuser(self, sql: str) -> None:
        connection = await asyncpg.connect(self.server.dsn)
        await connection.execute(sql)
        await connection.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with a_server() as server:
        rules = server.data / "pg_hba.conf"
        rules.write_text("host all me all scram-sha-256\n" + rules.read_text())
        made = Guarded(server)
        asyncio.run(made.as_superuser(f"create role me superuser login password '{PASSWORD}'; select pg_reload_conf()"))
        yield made


def hides(text: str) -> bool:
    """Whether no part of the password is in a text."""
    return not any(part in text for part in PARTS)


def titles(root: int) -> dict[int, str]:
    """What the system shows of a process and its descendants."""
    found, members = dict[int, str](), {root}
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name)):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if int(entry.name) in members or parent in members:
                members.add(int(entry.name))
                found[int(entry.name)] = (entry / "cmdline").read_bytes().strip(b"\0").decode()
    return found


MISTAKES = {
    "wrong": "--database-url postgresql://me:lily-p4d-fr0g@127.0.0.1:{port}/postgres",
    "wrong, encoded": f"--database-url postgresql://me:{ENCODED}x@127.0.0.1:{{port}}/postgres",
    "wrong, as an option": f"--database-url 'postgresql://me@127.0.0.1:{{port}}/postgres?password={ENCODED}x&sslmode=prefer'",
    "wrong, of the environment": "--database-url postgresql://me@127.0.0.1:{port}/postgres",
    "wrong, of a file": "--database-url 'postgresql://me@127.0.0.1:{port}/postgres?passfile={passfile}'",
    "unreachable": f"--database-url postgresql://me:{ENCODED}@127.0.0.1:1/app",
    "unknown host": f"--database-url postgresql://me:{ENCODED}@no-such-host.invalid/app",
    "not encoded": "--database-url 'postgresql://me:lily@p4d/fr0g@127.0.0.1:1/app'",
    "a port that is none": "--database-url 'postgresql://127.0.0.1:lily/p4d?fr0g'",
    "of libpq": "--database-url 'host=127.0.0.1 user=me password=lily-p4d-fr0g'",
    "out of place": f"postgresql://me:{ENCODED}@127.0.0.1:1/app",
    "an option mistyped": f"--database-uri=postgresql://me:{ENCODED}@127.0.0.1:1/app",
    "for another option": f"--procs postgresql://me:{ENCODED}@127.0.0.1:1/app",
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_url_that_does_not_work_is_not_repeated(guarded: Guarded, tmp_path: Path, mistake: str) -> None:
    passfile = tmp_path / "passfile"
    passfile.write_text(f"*:*:*:me:{PASSWORD}x\n")
    passfile.chmod(0o600)
    options = MISTAKES[mistake].format(port=guarded.server.port, passfile=passfile)
    environment = {"PGPASSWORD": f"{PASSWORD}x"} if "environment" in mistake else {}
    format = "--log-format json" if len(mistake) % 2 else ""
    told = await asyncio.gather(
        output_of(f"{RUNNER} {format} {options}", environment=environment, code=2),
        output_of(f"zart list {options.replace('--procs', '--limit')}", environment=environment, code=2),
    )
    for text in told:
        assert text.strip()
        assert hides(text), text
        assert "Traceback" not in text


async def test_a_fleet_never_shows_its_password(guarded: Guarded) -> None:
    """Not while it works, nor when the password is changed under it and all sessions are ended."""
    url = guarded.url(ENCODED)
    await output_of(f"zart migrate --database-url {url}")
    async with running(f"{RUNNER} --log-format json --listen-url {url} --database-url {url}") as runner:
        expected = {
            "zart-runner: arbiter tests.support.telling:registry", "zart-runner: control", "zart-runner: worker 0"
        }  # fmt: skip
        await eventually(lambda: set(titles(runner.pid).values()) == expected, within=60)
        waiting = await begin(f"zart wait nothing --timeout 60s --database-url {url}")
        await eventually(lambda: titles(waiting.pid).get(waiting.pid) == "zart: wait", within=60)
        await kill(waiting)
        await guarded.as_superuser("alter role me password 'another'")
        await guarded.as_superuser("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'me'")
        log = b""
        async with asyncio.timeout(60):
            while b"password authentication failed" not in log or b"worker cannot register yet" not in log:
                assert runner.stderr is not None
                log += await runner.stderr.read(4096)
        assert hides("".join(titles(runner.pid).values()))
        log += (await kill(runner)).encode()
        await guarded.as_superuser(f"alter role me password '{PASSWORD}'")
    assert hides(log.decode()), log.decode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to postgresql://me:a@b/c@h:1/d failed", "to postgresql://***@h:1/d failed"),
        ("postgres+asyncpg://me:x@h/d?password=y&a=b", "postgres+asyncpg://***@h/d?password=***&a=b"),
        ("{'password': 'x y', 'user': 'me'}", "{'password': ***, 'user': 'me'}"),
        ("PGPASSWORD=x and password='y z'", "PGPASSWORD=*** and password=***"),
        ("redis://:x@cache/0 and https://example.com/me", "redis://***@cache/0 and https://example.com/me"),
        ("write it as postgresql://USER:PASSWORD@HOST", "write it as postgresql://USER:PASSWORD@HOST"),
        ("check user and password: 'it' failed", "check user and password: 'it' failed"),
        ("mail ada@example.com", "mail ada@example.com"),
    ],
)
def test_passwords_in_texts_of_others_are_left_out(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("part", ["a.", "a-", "postgres://", "a://b:", "password='", "x://", "password", "é", "::"])
def test_a_line_of_any_length_takes_time_by_its_length_only(part: str) -> None:
    text = "password= :// " + part * (64_000 // len(part))
    began = time.process_time()
    redacted(text)
    assert time.process_time() - began < 1, "quadratic, it takes many"
