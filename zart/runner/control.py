"""The control process: the supervisor of a runner's workers, told of deaths by the arbiter.

It may end and be made again at any time: it keeps nothing that the board, the arbiter or the database does not have.
The socket of its HTTP endpoint is the arbiter's, so the next control serves the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import Final

import uvloop

from zart.engine.sampling import Sampler
from zart.engine.supervisor import Supervisor
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.exposition import BoardCollector, UserMetrics
from zart.runner.link import MESSAGE_BYTES, STOP, Death
from zart.runner.options import RunnerOptions
from zart.runner.probes import Probes
from zart.runner.queues import QueueCollector

_ENDED: Final = b""


def main(
    options: RunnerOptions, board: Board, wakes: tuple[int, ...], link_fd: int, listener: socket.socket | None = None
) -> int:
    """Control's life: until the arbiter says stop, or is gone. SIGTERM is the arbiter's business, and ignored here."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=link_fd) as link:
        link.setblocking(False)
        uvloop.run(_Control(options, board, wakes, link, listener).run())
    return 0


class _Control:
    def __init__(
        self,
        options: RunnerOptions,
        board: Board,
        wakes: tuple[int, ...],
        link: socket.socket,
        listener: socket.socket | None,
    ) -> None:
        self._options, self._board, self._wakes, self._link, self._listener = options, board, wakes, link, listener
        self._supervisor = Supervisor(
            dsn=options.dsn, schema=options.schema, config=options.config, places=board.places, wake=self._wake
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._supervisor.run())
            serving = None if self._listener is None else group.create_task(self._serve(self._listener))
            self._board.header[header.CONTROL_READY] = 1
            await self._hear_of_deaths()
            self._supervisor.stop()
            if serving is not None:
                serving.cancel()

    async def _serve(self, listener: socket.socket) -> None:
        """Serve HTTP until cancelled."""
        from zart.runner.endpoint import Endpoint  # the arbiter has loaded it, if there is something to serve

        options = self._options
        sampler = Sampler(options.dsn, options.schema, prepared_statements=options.config.prepared_statements)
        probes = Probes(self._board, sampler)
        endpoint = Endpoint([BoardCollector(self._board), UserMetrics(), QueueCollector(sampler)], probes.pages())
        async with endpoint.serving(listener), asyncio.TaskGroup() as group:
            group.create_task(sampler.run(), name="zart sampling")
            group.create_task(probes.watch(), name="zart probes")

    async def _hear_of_deaths(self) -> None:
        """Take deaths until the arbiter says stop; return when each is dealt with."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as burials:
            while (message := await loop.sock_recv(self._link, MESSAGE_BYTES)) not in (STOP, _ENDED):
                burials.create_task(self._bury(Death.decode(message)))

    async def _bury(self, death: Death) -> None:
        freed = await self._supervisor.report_death(death.worker_ids, death.running, death.how, death.step)
        self._board.header[header.TAKEN_OVER] += freed
        await asyncio.get_running_loop().sock_sendall(self._link, str(death.number).encode())

    def _wake(self, index: int) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wakes that were not read
            os.eventfd_write(self._wakes[index], 1)
