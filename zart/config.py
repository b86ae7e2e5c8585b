"""Settings, frozen and checked once, each with the reason for its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from zart.duration import Duration, seconds_of
from zart.errors import InvalidArgument, shown
from zart.names import checked_name

DEFAULT_SCHEMA = "zart"
DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 2
DEFAULT_MAX_RESULT_BYTES = 4 * 1024 * 1024

# A tick holds the worker's fence and its claims' rows: past these it is split, so that nobody waits long for it.
MAX_TICK_ROWS = 2_000
MAX_TICK_BYTES = 8 * 1024 * 1024

# As MAX_NAME_BYTES: it is part of an index key.
MAX_EXECUTION_ID_BYTES = 512


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How one worker process works. Durations take seconds, timedelta or text such as "500ms".

    Args:
        max_concurrent_tasks: slots, so the most executions in memory at once (1 to 10,000).
        poll_interval: longest time ready work goes unseen when every hint is lost (20 ms to 1 h).
        lease_timeout: how long a worker may be unheard of before others take its work over (1 s to 1 h).
        shutdown_timeout: how long running steps may go on after `stop()`.
        park_grace: how long a waiting body stays in memory before it is evicted. A sleep longer than that is at once,
            and so is every wait while all slots are taken.
        queues: serve only these queues; None serves all.
        max_result_bytes: largest stored value, encoded (1 KiB to 64 MiB).
        max_crashes: an execution whose code ran when its process died runs alone from then on, and is quarantined after
            so many deaths there (1 to 1,000).
        trx_pool_size: most connections for steps that call `trx()`, made when they are needed (1 to 1,000). Steps that
            find none free wait for one.
        prepared_statements: keep statements prepared on the server; None does so unless a pooler is in between.
        listen_url: database URL of the PostgreSQL server itself, to hear of ready work at once where a pooler is in
            between; None listens on the worker's own database URL if it leads to the server itself, and else polls.

    Raises:
        InvalidArgument: a value is out of its bounds.

    Example:
        >>> WorkerConfig(max_concurrent_tasks=64, lease_timeout="30s").lease_seconds
        30.0
    """

    max_concurrent_tasks: int = 256
    poll_interval: Duration = 1.0
    lease_timeout: Duration = 15.0
    shutdown_timeout: Duration = 30.0
    park_grace: Duration = 1.0
    queues: tuple[str, ...] | None = None
    max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES
    max_crashes: int = 3
    trx_pool_size: int = 4
    prepared_statements: bool | None = None
    listen_url: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _whole("max_concurrent_tasks", self.max_concurrent_tasks)
        _within("max_concurrent_tasks", self.max_concurrent_tasks, 1, 10_000)
        _within("poll_interval", self.poll_seconds, 0.02, 3600, " seconds")
        _within("lease_timeout", self.lease_seconds, 1, 3600, " seconds")
        _within("shutdown_timeout", self.shutdown_seconds, 0, 86_400, " seconds")
        _within("park_grace", self.grace_seconds, 0, 3600, " seconds")
        _whole("max_result_bytes", self.max_result_bytes)
        _within("max_result_bytes", self.max_result_bytes, 1024, 64 * 1024 * 1024, " bytes")
        _whole("max_crashes", self.max_crashes)
        _within("max_crashes", self.max_crashes, 1, 1000)
        _whole("trx_pool_size", self.trx_pool_size)
        _within("trx_pool_size", self.trx_pool_size, 1, 1000)
        check_flag("prepared_statements", self.prepared_statements)
        _text_or_none("listen_url", self.listen_url)
        if self.queues is not None:
            object.__setattr__(self, "queues", _checked_queues(self.queues))

    @property
    def poll_seconds(self) -> float:
        return seconds_of(self.poll_interval, "poll_interval")

    @property
    def lease_seconds(self) -> float:
        return seconds_of(self.lease_timeout, "lease_timeout")

    @property
    def shutdown_seconds(self) -> float:
        return seconds_of(self.shutdown_timeout, "shutdown_timeout")

    @property
    def grace_seconds(self) -> float:
        return seconds_of(self.park_grace, "park_grace")


def _whole(name: str, value: object) -> None:
    if type(value) is not int:
        raise InvalidArgument(f"{name} must be a whole number, got {shown(value)}")


def _within(name: str, value: float, least: float, most: float, unit: str = "") -> None:
    if not least <= value <= most:
        given = f"{value:,}" if abs(value) < 1e15 else shown(value)
        raise InvalidArgument(f"{name} must be from {least:,} to {most:,}{unit}, got {given}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True, False nor None.

    Raises:
        InvalidArgument: it is something else.
    """
    if value is not None and type(value) is not bool:
        raise InvalidArgument(f"{name} must be True, False or None, got {shown(value)}")


def _text_or_none(name: str, value: object) -> None:
    """The value is not shown: it may hold a password."""
    if value is not None and (not isinstance(value, str) or not value):
        raise InvalidArgument(f"{name} must be a database URL, as postgresql://host/database, or None")


def _checked_queues(queues: object) -> tuple[str, ...]:
    given = shown(queues)
    if not isinstance(queues, tuple) or not queues:
        raise InvalidArgument(f"queues must be a tuple of at least one queue name, or None for all queues, got {given}")
    return tuple(checked_name(queue, "a queue") for queue in cast("tuple[object, ...]", queues))
