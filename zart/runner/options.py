"""What one runner is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from zart.config import DEFAULT_SCHEMA, WorkerConfig
from zart.errors import InvalidArgument
from zart.runner.board import MAX_PROCS, Board

LogFormat = Literal["console", "json"]


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """A runner's settings.

    Args:
        dsn: the database, as `postgresql://...`.
        app: what the workers serve: `package.module` or `package.module:registry`.
        procs: number of worker processes, 1 to 512.
        schema: PostgreSQL schema of zart's tables.
        config: how each worker works.
        preload: import the app before the workers are forked, so that they share its memory.
        board: memory to use, for one who wants to watch from outside; it must have `procs` places.
        log_format: lines for people or one JSON object per line, on stderr.
        stuck_timeout: seconds a worker's event loop may stand still before the worker is killed; None stands for
            twice the lease.

    Raises:
        InvalidArgument: a value cannot be used.
    """

    dsn: str
    app: str
    procs: int = 2
    schema: str = DEFAULT_SCHEMA
    config: WorkerConfig = field(default_factory=WorkerConfig)
    preload: bool = False
    board: Board | None = None
    log_format: LogFormat = "console"
    stuck_timeout: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.procs <= MAX_PROCS:
            raise InvalidArgument(f"procs must be from 1 to {MAX_PROCS}, got {self.procs!r}")
        if self.board is not None and len(self.board.places) != self.procs:
            raise InvalidArgument(f"the board has {len(self.board.places)} places, but procs is {self.procs}")
        if self.stuck_timeout is not None and self.stuck_timeout <= 0:
            raise InvalidArgument(f"stuck_timeout must be above 0, got {self.stuck_timeout!r}")

    @property
    def stuck_seconds(self) -> float:
        return 2 * self.config.lease_seconds if self.stuck_timeout is None else self.stuck_timeout
