"""The HTTP endpoint of a supervisor: metrics and probes, in an event loop that has more important things to do.

A connection is for one request and 10 seconds, and there are 256 at most: for one more, the oldest ends that has not
asked for anything. So nobody who is slow, silent or hostile can keep a probe out, and what any of them holds is small.
Pages are made in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from zart.log import logger
from zart.runner.probes import Probe

MOST_CONNECTIONS: Final = 256  # twice what may wait to be accepted, so that none ends before it was read from
LONGEST_CONNECTION: Final = 10.0

_PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPEN: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_untyped: Any = openmetrics
_GENERATORS: Final[Mapping[str, Callable[[CollectorRegistry], bytes]]] = {
    _PLAIN: exposition.generate_latest,
    _OPEN: _untyped.generate_latest,
}

_log = logger("endpoint")
_junk = logger("endpoint.junk")  # of each request that is none, with a stack
_junk.disabled = True


class Endpoint:
    """Serves the pages of a supervisor.

    Args:
        collectors: what /metrics shows. Their `collect` is called in a thread.
        probes: checks by path, as "/livez": 200 if all are well, else 503.
    """

    def __init__(self, collectors: Sequence[Collector], probes: Mapping[str, Probe]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            self._registry.register(collector)
        self._probes = probes
        self._renderer = ThreadPoolExecutor(1, "zart metrics")
        self._pages: dict[str, asyncio.Future[bytes]] = {}
        self._failed = False

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncGenerator[None]:
        """Serve on a listening socket while the block runs."""
        loop = asyncio.get_running_loop()
        connections = _Connections(
            self._answer, logger=_junk, access_log=None, lingering_time=0, auto_decompress=False, tcp_keepalive=False
        )
        server = await loop.create_server(connections, sock=listener)
        try:
            yield
        finally:
            server.close()
            connections.abort()
            self._renderer.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        response = await self._page(request)
        response.headers["Server"] = "zart"
        response.force_close()
        return response

    async def _page(self, request: web.BaseRequest) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="only GET and HEAD are answered\n", headers={"Allow": "GET, HEAD"})
        if request.path == "/metrics":
            accepted = ",".join(request.headers.getall("Accept", ()))
            return await self._metrics(_OPEN if "application/openmetrics-text" in accepted else _PLAIN)
        probe = self._probes.get(request.path)
        if probe is None:
            return web.Response(status=404, text=f"not here; the pages are /metrics, {', '.join(self._probes)}\n")
        checks = probe()
        text = "".join(f"{check.name}: {check.fault or 'ok'}\n" for check in checks)
        return web.Response(status=503 if any(check.fault for check in checks) else 200, text=text)

    async def _metrics(self, content_type: str) -> web.Response:
        """Who asks while a page is made gets that one."""
        page = self._pages.get(content_type)
        if page is None:
            page = asyncio.get_running_loop().run_in_executor(self._renderer, self._render, content_type)
            self._pages[content_type] = page
            page.add_done_callback(lambda _: self._pages.pop(content_type))
        try:
            body = await asyncio.shield(page)
        except Exception:
            if not self._failed:
                _log.exception("the page of metrics cannot be made")
                self._failed = True
            return web.Response(status=500, text="the page cannot be made; the log has the reason\n")
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _render(self, content_type: str) -> bytes:
        return _GENERATORS[content_type](self._registry)


class _Connections(web.Server):
    """Ends each connection in time, and an idle one when there are too many."""

    def __init__(self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **settings: Any) -> None:
        super().__init__(self._note, **settings)
        self._answer = answer
        self._ends: dict[object, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}
        self._asked: set[object] = set()

    async def _note(self, request: web.BaseRequest) -> web.StreamResponse:
        self._asked.add(request.protocol)
        return await self._answer(request)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        end = asyncio.get_running_loop().call_later(LONGEST_CONNECTION, transport.abort)
        self._ends[handler] = transport, end
        if len(self._ends) > MOST_CONNECTIONS:
            others = [one for one in self._ends if one is not handler]
            self._end(next((one for one in others if one not in self._asked), others[0]))

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._end(handler)

    def abort(self) -> None:
        """End all connections."""
        for handler in tuple(self._ends):
            self._end(handler)

    def _end(self, handler: object) -> None:
        self._asked.discard(handler)
        ended = self._ends.pop(handler, None)
        if ended is not None:
            transport, end = ended
            end.cancel()
            transport.abort()
