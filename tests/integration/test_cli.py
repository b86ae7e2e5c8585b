"""The commands, as a user types them: what they print, what they answer, and what they say about mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.database import Database
from zart import __version__, embedded
from zart.cli.main import answer
from zart.cli.output import counted

APP = """
import zart
from zart import zart_durable, zart_step

@zart_step("add-one")
async def add_one(n: int) -> int:
    return n + 1

@zart_durable("increment")
async def increment(n: int) -> int:
    return await add_one(n)

@zart_durable("refuse")
async def refuse() -> None:
    raise ValueError("no, never")

@zart_step("load", retry="fixed(1, 1ms)")
async def load() -> str:
    raise ConnectionError("warehouse not reachable")

@zart_step("measure")
async def measure() -> str:
    return "x" * 5000

@zart_durable("ship")
async def ship() -> None:
    await load()

@zart_durable("inflate")
async def inflate() -> None:
    await measure()

async def apologize(failure: zart.Failure) -> None:
    raise RuntimeError("nobody listens")

@zart_step("elsewhere", queue="nobody")
async def elsewhere() -> None: ...

@zart_durable("delegate")
async def delegate() -> None:
    await zart.schedule(elsewhere())

@zart_durable("nap", on_failure=apologize, timeout="50ms")
async def nap() -> None:
    await zart.sleep("long", "1h")

registry = zart.TaskRegistry()
registry.register(increment)
empty = zart.TaskRegistry()
"""

ON_DATABASE = [
    ["migrate"],
    ["start", "increment"],
    ["status", "x"],
    ["wait", "x"],
    ["cancel", "x"],
    ["release", "x"],
    ["list"],
    ["history", "x"],
    ["event", "x", "go"],
]

OF_ONE_EXECUTION = [["status"], ["wait"], ["cancel"], ["release"], ["history"], ["event", "go"]]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def is_refused(self, *words: str) -> bool:
        """Exit code 2, nothing printed, and one line that has all the words."""
        line = self.err.removesuffix("\n")
        return self.code == 2 and not self.out and bool(line) and "\n" not in line and all(w in line for w in words)


Zart = Callable[..., Done]


@pytest.fixture(autouse=True)
def no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.fixture
def zart(capsys: pytest.CaptureFixture[str]) -> Zart:
    """Runs `zart` with these arguments."""

    def run(*arguments: str) -> Done:
        return Done(answer(arguments), *capsys.readouterr())

    return run


@pytest.fixture
def zart_here(zart: Zart, database: Database, monkeypatch: pytest.MonkeyPatch) -> Zart:
    """Runs `zart` on the test's database."""
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    return zart


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A directory with an application, `app.py`."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def runner(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from zart.cli.runner import main; main()", *arguments]
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def command(*arguments: str, stdout: IO[str], **environment: str) -> Done:
    """`zart` in a process of its own, with this stdout."""
    code = [sys.executable, "-c", "from zart.cli.main import main; main()", *arguments]
    done = subprocess.run(
        code, env={**os.environ, **environment}, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )
    return Done(done.returncode, "", done.stderr)


def ended(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


# Which database


@pytest.mark.parametrize("arguments", ON_DATABASE, ids=" ".join)
def test_without_a_database_every_command_names_the_three_ways(zart: Zart, arguments: list[str]) -> None:
    assert zart(*arguments).is_refused("--database-url", "--embedded", "DATABASE_URL")


def test_an_empty_database_url_is_none(zart: Zart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    assert zart("list").is_refused("no database was named")


def test_two_databases_are_refused(zart: Zart) -> None:
    assert zart("list", "--database-url", "postgresql://h/d", "--embedded", "/nowhere").is_refused("two databases")


@pytest.mark.parametrize("arguments", ON_DATABASE, ids=" ".join)
def test_an_unreachable_database_is_named_without_its_password(zart: Zart, arguments: list[str]) -> None:
    done = zart(*arguments, "--database-url", "postgresql://me:sesame@localhost:1/shop")
    assert done.is_refused("'shop'", "localhost:1", "connection refused")
    assert "sesame" not in done.err


@pytest.mark.parametrize(
    "url", ["host=localhost password=sesame", "postgresql://me:ses@me/sesame@h/d", "mysql://me:sesame@h/d", "sesame"]
)
def test_a_text_that_is_no_database_url_is_refused_and_not_repeated(zart: Zart, url: str) -> None:
    done = zart("list", "--database-url", url)
    assert done.is_refused("postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    assert "sesame" not in done.err


@pytest.mark.parametrize("arguments", ON_DATABASE[1:], ids=" ".join)
def test_a_database_without_the_schema_points_to_migrate(
    zart: Zart, arguments: list[str], empty_database: Database
) -> None:
    assert zart(*arguments, "--database-url", empty_database.dsn).is_refused("zart migrate")


def test_a_schema_that_cannot_be_a_name_is_refused(zart_here: Zart) -> None:
    assert zart_here("list", "--schema", "").is_refused("schema must be a name")


# migrate


def test_migrate_makes_the_schema_and_finds_it_the_next_time(zart: Zart, empty_database: Database) -> None:
    first = zart("migrate", "--database-url", empty_database.dsn)
    again = zart("migrate", "--database-url", empty_database.dsn)
    assert (first.code, again.code) == (0, 0)
    assert "0001_initial" in first.out
    assert again.out == "schema 'zart' is up to date\n"


def test_migrate_tells_programs_what_it_applied(zart: Zart, empty_database: Database) -> None:
    done = zart("migrate", "--json", "--buckets", "3", "--database-url", empty_database.dsn)
    assert done.json == {"schema": "zart", "applied": ["0001_initial"]}


def test_migrate_refuses_another_number_of_buckets(zart_here: Zart, database: Database) -> None:
    assert zart_here("migrate", "--buckets", str(database.buckets + 1)).is_refused(f"{database.buckets} buckets")


@pytest.mark.parametrize("buckets", ["0", "100000", "some"])
def test_migrate_refuses_impossible_numbers_of_buckets(zart: Zart, buckets: str) -> None:
    assert zart("migrate", "--buckets", buckets).is_refused("--buckets")


def test_the_printed_sql_makes_a_schema_that_zart_takes(zart: Zart, empty_database: Database) -> None:
    script = zart("migrate", "--sql", "--buckets", "2", "--schema", "Other")
    psql = embedded.program("psql")
    subprocess.run([psql, "-q", empty_database.dsn], input=script.out, text=True, check=True, stdout=subprocess.DEVNULL)
    assert zart("list", "--schema", "Other", "--database-url", empty_database.dsn).code == 0


# start, status, list, history, cancel, wait, event


def test_start_says_the_id_and_starts_it_once(zart_here: Zart) -> None:
    assert zart_here("start", "increment", "--data", "1", "--id", "one").out == "started one\n"
    assert zart_here("start", "increment", "--data", "1", "--id", "one").out.startswith("one existed already")
    assert len(zart_here("list", "--json").json["items"]) == 1


def test_start_makes_an_id_of_its_own(zart_here: Zart) -> None:
    started = zart_here("start", "increment", "--json").json
    assert started["created"]
    assert zart_here("status", started["execution_id"]).code == 0


def test_start_takes_queue_priority_and_delay(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one", "--queue", "mail", "--priority", "7", "--delay", "1h")
    found = zart_here("status", "one", "--json").json
    assert (found["queue"], found["priority"], found["status"]) == ("mail", 7, "pending")


def test_an_id_of_another_task_is_refused(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one")
    assert zart_here("start", "refuse", "--id", "one").is_refused("'increment'", "'refuse'")


@pytest.mark.parametrize("data", ["", "{bad", "{'a': 1}", "NaN", "[1,]", "1 2", "[" * 100_000])
def test_data_that_is_no_json_is_refused_and_starts_nothing(zart_here: Zart, data: str) -> None:
    assert zart_here("start", "increment", "--data", data).is_refused("--data is not JSON")
    assert zart_here("event", "one", "go", "--data", data).is_refused("--data is not JSON")
    assert zart_here("list", "--json").json["items"] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data", "99999999999999999999"),
        ("--data", '"\\ud800"'),
        ("--data", '"\\u0000"'),
        ("--delay", "soon"),
        ("--delay", "-1s"),
        ("--priority", "-1"),
        ("--priority", "high"),
        ("--queue", ""),
        ("--id", ""),
        ("--id", "zart:1"),
        ("--id", "x" * 600),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_and_starts_nothing(zart_here: Zart, option: str, value: str) -> None:
    assert zart_here("start", "increment", f"{option}={value}").is_refused()
    assert zart_here("list", "--json").json["items"] == []


@pytest.mark.parametrize("command", OF_ONE_EXECUTION, ids=lambda command: command[0])
def test_an_unknown_id_is_one_line(zart_here: Zart, command: list[str]) -> None:
    assert zart_here(command[0], "nobody", *command[1:]).is_refused("'nobody'", "zart list")


def test_status_shows_what_it_knows_to_people_and_programs(zart_here: Zart) -> None:
    zart_here("start", "increment", "--data", '{"n": "\\u001b[31m"}', "--id", "one")
    shown = zart_here("status", "one").out
    assert "status:        pending" in shown
    assert "\x1b" not in shown
    assert zart_here("status", "one", "--json").json["input"] == {"n": "\x1b[31m"}


def test_list_filters_and_goes_on_page_by_page(zart_here: Zart) -> None:
    for number in range(3):
        zart_here("start", "increment", "--id", f"one-{number}")
    zart_here("start", "refuse", "--id", "other")
    page = zart_here("list", "--task", "increment", "--limit", "2", "--json").json
    rest = zart_here("list", "--task", "increment", "--limit", "2", "--after", page["after"], "--json").json
    found = {item["execution_id"] for item in (*page["items"], *rest["items"])}
    assert found == {"one-0", "one-1", "one-2"}
    assert rest["after"] is None
    assert zart_here("list", "--status", "completed", "--json").json["items"] == []


def test_list_tells_people_how_to_go_on(zart_here: Zart) -> None:
    for number in range(2):
        zart_here("start", "increment", "--id", f"one-{number}")
    assert "--after" in zart_here("list", "--limit", "1").out


def test_the_children_of_nobody_are_asked_for(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "childless")
    assert zart_here("list", "--parent", "childless", "--json").json["items"] == []
    assert zart_here("list", "--parent", "nobody").is_refused("'nobody'")


@pytest.mark.parametrize("option", ["--status=done", "--limit=0", "--limit=x", "--after=nonsense"])
def test_a_list_that_cannot_be_made_is_refused(zart_here: Zart, option: str) -> None:
    assert zart_here("list", option).is_refused()


def test_release_refuses_what_is_not_quarantined(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one", "--data", "1")
    plain, as_json = zart_here("release", "one"), zart_here("release", "one", "--json")
    assert (plain.code, as_json.code) == (1, 1)
    assert plain.err == "zart: one is not quarantined; `zart status` shows how it is\n"
    assert as_json.json == {"execution_id": "one", "released": False}


def test_cancel_answers_whether_it_came_in_time(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one")
    first, second = zart_here("cancel", "one"), zart_here("cancel", "one", "--json")
    assert (first.code, second.code) == (0, 1)
    assert second.json == {"execution_id": "one", "cancelled": False}
    assert zart_here("status", "one", "--json").json["status"] == "cancelled"


def test_wait_fails_when_the_time_is_up(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one")
    done = zart_here("wait", "one", "--timeout", "50ms")
    assert (done.code, done.out) == (1, "")
    assert "after 0.05 s" in done.err


def test_wait_fails_for_an_execution_without_a_result_and_shows_it(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one")
    zart_here("cancel", "one")
    done = zart_here("wait", "one", "--json")
    assert done.code == 1
    assert done.json["status"] == "cancelled"
    assert "was cancelled" in done.err


def test_an_event_is_taken_once(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one")
    answers = [zart_here("event", "one", "go", "--data", "1", "--json") for _ in range(2)]
    assert [answer.code for answer in answers] == [0, 1]
    assert [answer.json["answer"] for answer in answers] == ["accepted", "already_offered"]


# Usage


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["start"], ["list", "--bogus"], ["status", "a", "b"], ["wait", "x", "--timeout"]]
)
def test_wrong_usage_is_one_line_that_points_to_the_help(zart: Zart, arguments: list[str]) -> None:
    assert zart(*arguments).is_refused("--help`")


def test_the_version_is_one_line(zart: Zart) -> None:
    done = zart("--version")
    assert (done.code, done.out) == (0, f"zart {__version__}\n")


def test_without_arguments_it_shows_the_help_and_nothing_else(zart: Zart) -> None:
    done = zart()
    assert (done.code, done.out, done.err) == (2, zart("--help").out, "")


def test_the_help_names_every_verb(zart: Zart) -> None:
    shown = zart("--help").out
    assert [verb for verb, *_ in ON_DATABASE if f" {verb} " not in shown] == []


@pytest.mark.parametrize("command", ON_DATABASE[2:], ids=" ".join)
def test_a_command_that_reads_makes_no_embedded_database(zart: Zart, command: list[str], tmp_path: Path) -> None:
    assert zart(*command, "--embedded", str(tmp_path / "tpyo")).is_refused("tpyo has no PostgreSQL data")
    assert not (tmp_path / "tpyo").exists()


@pytest.mark.parametrize("command", ON_DATABASE, ids=" ".join)
def test_an_embedded_database_without_a_name_is_refused(zart: Zart, command: list[str]) -> None:
    assert zart(*command, "--embedded", "").is_refused("--embedded names no directory")


def test_a_duration_may_be_seconds_without_a_unit(zart_here: Zart) -> None:
    zart_here("start", "increment", "--id", "one", "--delay", "3600")
    assert zart_here("status", "one", "--json").json["status"] == "pending"
    assert zart_here("wait", "one", "--timeout", "0.05").code == 1


@pytest.mark.parametrize("value", ["soon", "-1", "5 years", "", "1e3", "200000d"])
def test_a_text_that_is_no_duration_is_answered_with_the_forms(zart_here: Zart, value: str) -> None:
    done = zart_here("wait", "one", f"--timeout={value}")
    assert done.is_refused("--timeout must be a duration", "500ms", "number of seconds", repr(value))
    assert "timedelta" not in done.err


@pytest.mark.parametrize("arguments", [["--help"], ["migrate", "--sql"], ["list"], ["wait", "one", "--json"]])
def test_an_output_that_cannot_be_written_is_one_line(
    zart_here: Zart, database: Database, arguments: list[str]
) -> None:
    zart_here("start", "increment", "--id", "one")
    zart_here("cancel", "one")
    with Path("/dev/full").open("w") as full:
        done = command(*arguments, stdout=full, DATABASE_URL=database.dsn)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "zart: the output cannot be written: No space left on device"
    assert "Traceback" not in done.err
    assert "Exception ignored" not in done.err


def test_closed_streams_are_as_good_as_dev_null() -> None:
    script = f"{sys.executable} -c 'from zart.cli.main import main; main()' migrate --sql <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", script], check=False).returncode == 0


def test_counts_are_in_the_right_number() -> None:
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


@pytest.mark.parametrize("arguments", [["--help"], ["start", "--help"], ["demo", "-h"]])
def test_help_is_no_mistake(zart: Zart, arguments: list[str]) -> None:
    done = zart(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "Usage" in done.out


def test_a_reader_that_leaves_is_no_traceback(database: Database) -> None:
    command = [sys.executable, "-c", "from zart.cli.main import main; main()", "migrate", "--sql"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# zart-runner


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--app", "app"], ["--database-url", "--embedded", "DATABASE_URL"]),
        ([], ["--app"]),
        (["--app", "app", "--procs", "0"], ["--procs must be from 1"]),
        (["--app", "app", "--procs", "many"], ["--procs"]),
        (["--app", "app", "--lease-timeout", "long"], ["--lease-timeout", "500ms", "number of seconds"]),
        (["--app", "app", "--lease-timeout", "0.5"], ["--lease-timeout must be from 1 to 3,600 seconds, got 0.5"]),
        (["--app", "app", "--poll-interval", "2h"], ["--poll-interval", "seconds, got 7,200"]),
        (["--app", "app", "--shutdown-timeout", "2d"], ["--shutdown-timeout", "seconds, got 172,800"]),
        (["--app", "app", "--concurrency", "0"], ["--concurrency must be from 1 to 10,000, got 0"]),
        (["--app", "app", "--max-result-bytes", "5"], ["--max-result-bytes must be from 1,024 to 67,108,864 bytes"]),
        (["--app", "app", "--stall-timeout", "0"], ["--stall-timeout must be at least 0.5 s, got 0.0"]),
        (["--app", "app", "--stall-timeout", "long"], ["--stall-timeout", "500ms"]),
        (["--app", "app", "--max-age", "500ms"], ["--max-age must be at least 1 s, got 0.5"]),
        (["--app", "app", "--max-executions", "0"], ["--max-executions must be a whole number of at least 1, got 0"]),
        (["--app", "app", "--max-rss", "1000"], ["--max-rss must be a whole number of at least 1,048,576, got 1000"]),
        (["--app", "app", "--max-rss", "2GiB"], ["--max-rss must be a size, as 512M or 2G", "got '2GiB'"]),
        (["--app", "app", "--http-port", "70000"], ["--http-port must be a whole number from 0 to 65,535, got 70000"]),
        (["--app", "app", "--embedded", ""], ["--embedded names no directory"]),
        (["--app", "app", "--queues", "a,,b"], ["--queues"]),
        (["--app", "app", "--log-format", "xml"], ["--log-format"]),
        (["--app", "app", "--database-url", "postgresql://me:sesame@localhost:1/shop"], ["localhost:1"]),
        (["--app", "app", "--embedded", "/dev/null"], ["is a file"]),
    ],
)
def test_the_runner_refuses_in_one_line(application: Path, arguments: list[str], words: list[str]) -> None:
    done = ended(runner(*arguments, cwd=application))
    assert done.is_refused(*words), done
    assert done.err.startswith("zart-runner: ")
    assert "sesame" not in done.err
    assert "timedelta" not in done.err


@pytest.mark.parametrize(
    ("target", "source", "words"),
    [
        ("missing", "", ["no module 'missing'"]),
        ("not a module", "", ["'not a module' names no module"]),
        ("mine", "x = 1", ["mine has no durable functions", "@zart_durable"]),
        ("app:nothing", "", ["a TaskRegistry is needed"]),
        ("app:empty", "", ["no durable functions"]),
        ("app:increment", "", ["is a durable function", "use --app app"]),
        ("mine", "raise RuntimeError('config missing')", ["RuntimeError: config missing (mine.py:2)"]),
        ("app.py", "", ["leave out .py: app"]),
        ("mine", "def broken(:", ["SyntaxError"]),
        ("mine", "import missing_library", ["missing_library"]),
        ("mine", "@d('a')\nasync def f(): ...\n@d('a')\nasync def g(): ...", ["'a'", "mine.f", "mine.g"]),
        ("mine", "@d('a')\nasync def f(x, y): ...", ["'a'", "2 parameters"]),
        ("mine", "@s('a', retry='often')\nasync def f(): ...", ["'often'", "fixed(3, 1s)"]),
        ("mine", "@s('a', timeout='5 years')\nasync def f(): ...", ["'5 years'"]),
    ],
)
def test_the_runner_says_what_is_wrong_with_the_application(
    application: Path, database: Database, target: str, source: str, words: list[str]
) -> None:
    (application / "mine.py").write_text(f"from zart import zart_durable as d, zart_step as s\n{source}\n")
    done = ended(runner("--app", target, "--database-url", database.dsn, cwd=application))
    assert done.is_refused(*words), done
    assert done.err.startswith("zart-runner: ")


def test_the_runner_refuses_a_database_without_the_schema(application: Path, empty_database: Database) -> None:
    done = ended(runner("--app", "app", cwd=application, DATABASE_URL=empty_database.dsn))
    assert done.is_refused("zart migrate"), done


def test_a_user_starts_waits_and_reads_what_the_runner_did(
    application: Path, zart_here: Zart, database: Database
) -> None:
    zart_here("start", "increment", "--data", "41", "--id", "good")
    zart_here("start", "refuse", "--id", "bad")
    zart_here("start", "increment", "--data", '"text"', "--id", "strange")
    serving = runner("--app", "app", "--procs", "2", "--database-url", database.dsn, cwd=application)
    good, bad, strange = (zart_here("wait", name, "--timeout", "30s", "--json") for name in ("good", "bad", "strange"))
    history = zart_here("history", "good", "--json").json
    serving.send_signal(signal.SIGTERM)

    assert (good.code, good.json["output"]) == (0, 42)
    assert (bad.code, bad.json["status"]) == (1, "failed")
    assert "no, never" in bad.err
    assert (strange.code, strange.json["status"]) == (1, "failed")
    assert "Expected `int`, got `str`" in strange.err
    assert [(step["name"], step["result"]) for step in history] == [("add-one", 42)]
    assert "add-one" in zart_here("history", "good").out
    assert ended(serving).code == 0


def test_a_registry_serves_only_what_it_has(application: Path, zart_here: Zart, database: Database) -> None:
    zart_here("start", "refuse", "--id", "unknown")
    zart_here("start", "increment", "--data", "1", "--id", "known")
    serving = runner("--app", "app:registry", "--procs", "1", "--database-url", database.dsn, cwd=application)
    known = zart_here("wait", "known", "--timeout", "30s")
    serving.send_signal(signal.SIGTERM)
    assert ended(serving).code == 0
    assert known.code == 0
    assert zart_here("status", "unknown", "--json").json["status"] == "pending"


def test_the_runner_brings_its_own_postgresql_which_the_commands_join(application: Path, zart: Zart) -> None:
    base = Path(embedded.temporary_directory())
    directory = str(base / f"zart-test-{os.getpid()}-{time.monotonic_ns()}")
    serving = runner("--app", "app", "--procs", "1", "--embedded", directory, cwd=application)
    try:
        assert zart("start", "increment", "--data", "1", "--id", "one", "--embedded", directory).code == 0
        assert zart("wait", "one", "--timeout", "30s", "--embedded", directory, "--json").json["output"] == 2
    finally:
        serving.send_signal(signal.SIGTERM)
        done = ended(serving)
        subprocess.run(["rm", "-rf", directory], check=True)
    assert done.code == 0, done


def test_history_shows_errors_as_text(application: Path, zart_here: Zart, database: Database) -> None:
    zart_here("start", "ship", "--id", "one")
    serving = runner("--app", "app", "--procs", "1", "--database-url", database.dsn, cwd=application)
    zart_here("wait", "one", "--timeout", "30s")
    shown = zart_here("history", "one").out
    serving.send_signal(signal.SIGTERM)
    assert ended(serving).code == 0
    assert shown.count("ConnectionError: warehouse not reachable") == 2
    assert "{" not in shown


def test_history_tells_where_a_child_is_that_nobody_takes(
    application: Path, zart_here: Zart, database: Database
) -> None:
    zart_here("start", "delegate", "--id", "one")
    arguments = ["--app", "app", "--procs", "1", "--queues", "default"]
    serving = runner(*arguments, "--database-url", database.dsn, cwd=application)
    deadline = time.monotonic() + 30
    while not (children := zart_here("list", "--parent", "one", "--json").json["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shown = zart_here("history", "one").out
    serving.send_signal(signal.SIGTERM)
    assert ended(serving).code == 0
    assert [(child["task_name"], child["queue"], child["status"]) for child in children] == [
        ("elsewhere", "nobody", "pending")
    ]
    assert "zart list --parent one" in shown


def test_a_broken_handler_and_a_sleep_that_is_over_are_shown(
    application: Path, zart_here: Zart, database: Database
) -> None:
    zart_here("start", "nap", "--id", "one")
    serving = runner("--app", "app", "--procs", "1", "--database-url", database.dsn, cwd=application)
    done = zart_here("wait", "one", "--timeout", "30s")
    shown = zart_here("history", "one").out
    serving.send_signal(signal.SIGTERM)
    assert ended(serving).code == 0
    assert "on_failure:    RuntimeError: nobody listens" in done.out
    assert re.search(r"^long +sleep +given up +1$", shown, re.MULTILINE)


def test_max_result_bytes_bounds_what_the_runner_stores(application: Path, zart_here: Zart, database: Database) -> None:
    zart_here("start", "inflate", "--id", "one")
    arguments = ["--app", "app", "--procs", "1", "--max-result-bytes", "1024", "--lease-timeout", "5"]
    serving = runner(*arguments, "--database-url", database.dsn, cwd=application)
    done = zart_here("wait", "one", "--timeout", "30")
    serving.send_signal(signal.SIGTERM)
    assert ended(serving).code == 0
    assert done.code == 1
    assert "max_result_bytes" in done.err
