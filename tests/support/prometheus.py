"""A real Prometheus and postgres_exporter for a test, as Debian packages them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

MISSING = "" if shutil.which("prometheus") else "prometheus is not installed: apt-get install prometheus"
"""Why there can be none here; empty where it can."""

NO_EXPORTER = (
    ""
    if shutil.which("prometheus-postgres-exporter")
    else "postgres_exporter is not installed: apt-get install prometheus-postgres-exporter"
)

_LISTENS = re.compile(r'msg="Listening on" address=(\S+)')


def promtool(*arguments: str | Path) -> str:
    """What promtool prints, on both streams.

    Raises:
        AssertionError: it is not content.
    """
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Listener:
    """A server on a free port of this host, started on entry and gone on exit; its log says which port."""

    def __init__(self, *command: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self._command, self._environment = [str(word) for word in command], {**os.environ, **(environment or {})}
        self._directory = Path(tempfile.mkdtemp(prefix="zart-prometheus-"))
        self.address = ""

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "--web.listen-address=127.0.0.1:0"],
                cwd=self._directory,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        give_up = time.monotonic() + 20
        while not (found := _LISTENS.search(self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up, f"does not listen: {self._log.read_text()}"
            time.sleep(0.01)
        self.address = found[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(20)
        shutil.rmtree(self._directory)

    @property
    def _log(self) -> Path:
        return self._directory / "log"


def postgres_exporter(dsn: str, queries: Path) -> Listener:
    """One that is connected to a database, in the words of libpq."""
    return Listener(
        "prometheus-postgres-exporter",
        f"--extend.query-path={queries}",
        environment={"DATA_SOURCE_NAME": dsn},
    )


class Prometheus(Listener):
    """One that scrapes targets.

    Args:
        directory: gets its configuration and data.
        jobs: the addresses of each job's targets.
        rules: files of rules that it evaluates.
        every: seconds between scrapes, and between evaluations.
    """

    def __init__(
        self, directory: Path, jobs: Mapping[str, Sequence[str]], rules: Sequence[Path] = (), every: float = 1.0
    ) -> None:
        interval = f"{every * 1000:.0f}ms"
        settings = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
            ],
        }
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        super().__init__(
            "prometheus",
            f"--config.file={directory / 'prometheus.yaml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--log.level=info",
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self._client = httpx.Client(base_url=f"http://{self.address}", timeout=20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        super().__exit__(kind, error, trace)

    async def ask(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression gives at this moment.

        Raises:
            AssertionError: it cannot be parsed or evaluated.
        """
        answer = await asyncio.to_thread(self._client.get, "/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        data: list[dict[str, Any]] = answer.json()["data"]["result"]
        return data
