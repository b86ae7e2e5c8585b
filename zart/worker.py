"""The engine inside any asyncio program: same claims, same ticks as a worker of the runner.

Its supervisor (leases, polling, takeover) runs in a thread of its own, so that a blocked event loop of the program is
noticed by others instead of keeping its lease alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import Protocol

from zart.config import WorkerConfig
from zart.engine.loop import WorkerLoop
from zart.engine.session import new_worker_id
from zart.engine.supervisor import Supervisor
from zart.errors import RegistrationError
from zart.metrics import Place
from zart.registry import TaskRegistry

LONGEST_GOODBYE = 10.0


class HasDatabase(Protocol):
    """What a worker needs of a scheduler: which database it is connected to."""

    @property
    def dsn(self) -> str: ...

    @property
    def schema(self) -> str: ...


class Worker:
    """Runs the executions of a registry until stopped.

    Args:
        scheduler: names the database; the worker makes connections of its own.
        registry: durable functions and steps to serve.
        config: slots, durations, limits; the defaults if None.

    Raises:
        RegistrationError: the registry has no durable function.

    Example:
        async with zart.PostgresScheduler.connect(dsn) as scheduler:
            await zart.Worker(scheduler, registry, zart.WorkerConfig(max_concurrent_tasks=64)).run()
    """

    def __init__(self, scheduler: HasDatabase, registry: TaskRegistry, config: WorkerConfig | None = None) -> None:
        if not registry.durables:
            raise RegistrationError("the registry has no durable function; register one before making a Worker")
        self._registry, self._config = registry, config or WorkerConfig()
        self._dsn, self._schema = scheduler.dsn, scheduler.schema
        self.place = Place.private()
        self._loop: WorkerLoop | None = None
        self._stopped = False
        self._ended: asyncio.Future[None] | None = None

    async def run(self, *, handle_signals: bool = False) -> None:
        """Work until `stop()` or until cancelled; both drain: running steps end, the rest is handed back.

        Args:
            handle_signals: drain on SIGTERM and SIGINT; only for programs that leave their signals to the worker.

        A database that cannot be reached is waited for, also at the beginning.

        Raises:
            DatabaseError: the database cannot serve zart, as when its schema is missing.
        """
        self._ended = asyncio.get_running_loop().create_future()
        try:
            await self._run(handle_signals)
        except BaseException as error:
            self._ended.set_exception(error)
            self._ended.exception()  # it is raised here as well, so nobody needs to ask for it
            raise
        else:
            self._ended.set_result(None)

    async def _run(self, handle_signals: bool) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._registry.lifespan is not None:
                await stack.enter_async_context(self._registry.lifespan())
            self._loop = self._new_loop()
            if handle_signals:
                stack.enter_context(_signals(self.stop))
            if self._stopped:
                return
            await stack.enter_async_context(
                _SupervisorThread(self._dsn, self._schema, self._config, self.place, self._loop)
            )
            await _drain_when_cancelled(asyncio.create_task(self._loop.run(), name="zart worker"), self._loop)

    async def ready(self) -> None:
        """Wait until `run()`, begun in another task, has registered the worker; raise what it raised if it failed.

        Example:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.run())
                await worker.ready()
        """
        while not self.place.ready:
            if self._ended is not None and self._ended.done():
                self._ended.result()
                return
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Begin to drain; `run()` returns when it is done. Call it in the worker's event loop."""
        self._stopped = True
        if self._loop is not None:
            self._loop.stop()

    def _new_loop(self) -> WorkerLoop:
        self.place.clear()
        self.place.pid = os.getpid()
        return WorkerLoop(
            dsn=self._dsn,
            schema=self._schema,
            registry=self._registry.served,
            config=self._config,
            place=self.place,
            worker_id=new_worker_id(),
        )


async def _drain_when_cancelled(task: asyncio.Task[None], loop: WorkerLoop) -> None:
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        loop.stop()
        await task
        raise


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _SupervisorThread:
    """A supervisor with an event loop of its own, for one worker."""

    def __init__(self, dsn: str, schema: str, config: WorkerConfig, place: Place, worker: WorkerLoop) -> None:
        self._worker_loop = asyncio.get_running_loop()
        self._worker, self._ended = worker, asyncio.Event()
        self._supervisor = Supervisor(dsn=dsn, schema=schema, config=config, places=[place], wake=self._wake)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="zart supervisor", daemon=True)

    async def __aenter__(self) -> None:
        self._thread.start()

    async def __aexit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._supervisor.stop)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), LONGEST_GOODBYE)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._supervisor.run())
        with contextlib.suppress(RuntimeError):  # the program's loop has ended
            self._worker_loop.call_soon_threadsafe(self._ended.set)

    def _wake(self, _: int) -> None:
        with contextlib.suppress(RuntimeError):  # the program's loop has ended
            self._worker_loop.call_soon_threadsafe(self._worker.wake)
