"""A worker process, and the probe that goes before the first of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import traceback
from collections.abc import Coroutine
from typing import Any, Final

import uvloop

from zart import tracing
from zart.engine.loop import WorkerLoop
from zart.engine.threads import default_threads
from zart.errors import DatabaseUnreachable, InvalidArgument, RegistrationError, ZartError
from zart.log import logger, of_process
from zart.metrics import Place
from zart.postgres.connection import connect
from zart.registry import Lifespan, TaskRegistry, load_registry
from zart.runner.board import Board
from zart.runner.options import RunnerOptions
from zart.runner.title import show_process
from zart.store import workers
from zart.store.migrate import check_schema

EXIT_DRAINED: Final = 0
EXIT_FAILED: Final = 1
EXIT_CANNOT_START: Final = 3
"""The application or the schema cannot be used: trying again will not help. The board says why, in one line."""
EXIT_NO_DATABASE: Final = 4
"""The application could not be made ready for want of the database."""

_FLUSH_PATIENCE: Final = 2.0

_log = logger("worker")


def probe(options: RunnerOptions, board: Board) -> int:
    """Try what every worker needs: the application, the database and its schema. The board says what is wrong."""
    show_process("probe")
    try:
        load_registry(options.app)
        _run(_check_database(options))
    except ZartError as error:
        board.say(str(error))
        return EXIT_CANNOT_START
    return EXIT_DRAINED


def main(options: RunnerOptions, board: Board, index: int, wake_fd: int) -> int:
    """A worker's life: load the application, work until SIGTERM and drained. Give the exit code.

    Why it cannot work, the board says: the arbiter tells of it, and of many workers with the same reason but once.
    """
    show_process(f"worker {index}")
    of_process["worker"] = index
    try:
        registry = load_registry(options.app)
        _spare_the_collector()
        _run(_work(options, registry, board, index, wake_fd))
        code = EXIT_DRAINED
    except ZartError as error:
        board.say(str(error), index)
        code = EXIT_NO_DATABASE if isinstance(error, DatabaseUnreachable) else EXIT_CANNOT_START
    board.places[index].leave()
    tracing.flush(_FLUSH_PATIENCE)
    return code


def _spare_the_collector() -> None:
    """Executions come and go by the thousand: the default thresholds spend a tenth of a worker's time on collections
    that find nothing (`python -m bench run five-step`)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _check_database(options: RunnerOptions) -> None:
    connection = await connect(
        options.dsn, application_name="zart runner", prepared_statements=options.config.prepared_statements
    )
    try:
        await check_schema(connection, options.schema)
        if options.config.listen_url is not None:
            database = await workers.read_database(connection, options.schema)
            await _check_listening(options.config.listen_url, options.schema, database)
    finally:
        await connection.close()


async def _check_listening(url: str, schema: str, database: str) -> None:
    try:
        connection = await connect(url, application_name="zart runner")
    except DatabaseUnreachable as error:
        raise DatabaseUnreachable(f"--listen-url: {error}") from error
    try:
        if connection.pooled:
            raise InvalidArgument(
                "--listen-url leads through a pooler, where nobody can listen; name the PostgreSQL server itself, or"
                " leave it out and poll"
            )
        if await workers.read_database(connection, schema) != database:
            raise InvalidArgument("--listen-url leads to another database than the database URL; name the same one")
    finally:
        await connection.close()


async def _work(options: RunnerOptions, registry: TaskRegistry, board: Board, index: int, wake_fd: int) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(default_threads())
    worker = _new_worker(options, registry, board.places[index])
    async with contextlib.AsyncExitStack() as stack:
        if registry.lifespan is not None:
            await _enter(stack, registry.lifespan, options, board)
        loop.add_signal_handler(signal.SIGTERM, _drain, worker, index)
        loop.add_reader(wake_fd, _wake, wake_fd, worker)
        await worker.run()


def _drain(worker: WorkerLoop, index: int) -> None:
    show_process(f"worker {index} (draining)")
    worker.stop()


async def _enter(stack: contextlib.AsyncExitStack, lifespan: Lifespan, options: RunnerOptions, board: Board) -> None:
    """Enter the application's lifespan. SIGTERM still ends the process here: it holds nothing yet."""
    try:
        await stack.enter_async_context(lifespan())
    except Exception as error:
        if board.is_news("".join((type(error).__qualname__, *traceback.format_tb(error.__traceback__)))):
            _log.exception("the registry's lifespan failed")
        await _check_database(options)  # it may have failed for want of the database, which will be back
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise RegistrationError(f"the registry's lifespan failed: {what}") from error


def _new_worker(options: RunnerOptions, registry: TaskRegistry, place: Place) -> WorkerLoop:
    return WorkerLoop(
        dsn=options.dsn,
        schema=options.schema,
        registry=registry.served,
        config=options.config,
        place=place,
        worker_id=place.worker_id,
    )


def _wake(wake_fd: int, worker: WorkerLoop) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(wake_fd)
    worker.wake()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on a fast event loop. It is not closed: the process ends next, and does not wait for threads of user code."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(work)
    loop.run_until_complete(loop.shutdown_asyncgens())
