"""What one runner is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from zart.config import DEFAULT_SCHEMA, WorkerConfig
from zart.duration import Duration, seconds_of
from zart.errors import InvalidArgument, shown
from zart.runner.board import MAX_PROCS, Board
from zart.runner.listener import DEFAULT_HOST, check_port

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEAST_STALL: Final = 0.5  # shorter pauses are those of a busy machine
_SHORT_STALL: Final = 5.0
_LEAST_AGE: Final = 1.0  # below it, workers would do little but start
_LEAST_RSS: Final = 2**20
_ROOM: Final = 16


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """A runner's settings. Durations take seconds, timedelta or text such as "500ms".

    Args:
        dsn: the database, as `postgresql://...`.
        app: what the workers serve: `package.module` or `package.module:registry`.
        procs: number of worker processes, 1 to 512.
        schema: PostgreSQL schema of zart's tables.
        config: how each worker works.
        preload: import the app before the workers are forked, so that they share its memory.
        board: memory to use, for one who wants to watch from outside; it must have `procs` places or more.
        log_format: lines for people or one JSON object per line, on stderr.
        log_level: the least severe lines that are written.
        stall_timeout: how long a worker's event loop may stand still before the worker is killed (from 0.5 s); None
            stands for twice the lease.
        max_age: how old a worker may become before it is replaced (from 1 s); None for any age.
        max_executions: how many executions a worker ends or puts down before it is replaced; None for any number.
        max_rss: bytes of memory that a worker may have before it is replaced (from 1 MiB); None for any size.
        http_port: port of the metrics and health pages (0 to 65535, 0 for a free one); None for no such pages.
        http_host: address of this host that they are served on.

    Raises:
        InvalidArgument: a value cannot be used.
    """

    dsn: str = field(repr=False)
    app: str
    procs: int = 2
    schema: str = DEFAULT_SCHEMA
    config: WorkerConfig = field(default_factory=WorkerConfig)
    preload: bool = False
    board: Board | None = None
    log_format: LogFormat = "console"
    log_level: LogLevel = "info"
    stall_timeout: Duration | None = None
    max_age: Duration | None = None
    max_executions: int | None = None
    max_rss: int | None = None
    http_port: int | None = None
    http_host: str = DEFAULT_HOST

    def __post_init__(self) -> None:
        if not 1 <= self.procs <= MAX_PROCS:
            raise InvalidArgument(f"procs must be from 1 to {MAX_PROCS}, got {self.procs!r}")
        if self.board is not None and len(self.board.places) < self.procs:
            raise InvalidArgument(f"the board has {len(self.board.places)} places, but procs is {self.procs}")
        if self.http_port is None and self.http_host != DEFAULT_HOST:
            raise InvalidArgument("http_host serves nothing without http_port; name a port, as 9464")
        _ = _seconds("stall_timeout", self.stall_timeout, _LEAST_STALL)
        _ = _seconds("max_age", self.max_age, _LEAST_AGE)
        _at_least("max_executions", self.max_executions, 1)
        _at_least("max_rss", self.max_rss, _LEAST_RSS)
        if self.http_port is not None:
            check_port("http_port", self.http_port)

    @property
    def stall_seconds(self) -> float:
        seconds = _seconds("stall_timeout", self.stall_timeout, _LEAST_STALL)
        return max(self.config.lease_seconds * 2 / 3, _SHORT_STALL) if seconds is None else seconds

    @property
    def max_age_seconds(self) -> float | None:
        return _seconds("max_age", self.max_age, _LEAST_AGE)

    @property
    def most_procs(self) -> int:
        """How many workers the runner can grow to."""
        if self.board is not None:
            return len(self.board.places)
        return min(MAX_PROCS, max(2 * self.procs, self.procs + _ROOM))


def _seconds(name: str, value: Duration | None, least: float) -> float | None:
    seconds = None if value is None else seconds_of(value, name)
    if seconds is not None and seconds < least:
        raise InvalidArgument(f"{name} must be at least {least:g} s, got {shown(value)}")
    return seconds


def _at_least(name: str, value: object, least: int) -> None:
    if value is not None and (type(value) is not int or value < least):
        raise InvalidArgument(f"{name} must be a whole number of at least {least:,}, got {shown(value)}")
