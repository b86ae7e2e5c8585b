"""`zart top`: how a runner is doing, live, from its page of metrics."""

from __future__ import annotations

import contextlib
import http.client
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from zart.cli.command import Failed, one_line
from zart.cli.frame import drawn
from zart.cli.scrape import Scrape, parse
from zart.errors import InvalidArgument
from zart.runner.listener import DEFAULT_HOST, DEFAULT_PORT

_TIMEOUT: Final = 5.0
_INTERVAL: Final = 1.0
_WIDTH: Final = 120
_MOST_BYTES: Final = 32 * 2**20
_ACCEPTED: Final = "text/plain; version=0.0.4"

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def top(
    url: Annotated[
        str, typer.Option(metavar="URL", help="Where a runner with --http-port, or `zart metrics`, serves its pages.")
    ] = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}",
    once: Annotated[bool, typer.Option("--once", help="Print one frame, over one second, and end.")] = False,
) -> None:
    """Watch a runner: rates, latencies, workers, queues, errors. Ctrl-C ends it."""
    page = _page(url)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    before = _fetch(page)
    if once or not console.is_terminal:
        time.sleep(_INTERVAL)
        with console.capture() as frame:
            console.print(drawn(page, before, _fetch(page)))
        for line in frame.get().splitlines():
            print(line.rstrip())
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(_INTERVAL)
            try:
                now = _fetch(page)
            except Failed as error:  # the runner is restarted, perhaps
                live.update(Text(f"{error}; trying again"), refresh=True)
                continue
            live.update(drawn(page, before, now), refresh=True)
            before = now


def _page(url: str) -> str:
    """The address of the page of metrics."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"--url must be as http://127.0.0.1:9464, got {url!r}")
    return parts._replace(path=parts.path if parts.path.strip("/") else "/metrics", fragment="").geturl()


def _fetch(page: str) -> Scrape:
    request = urllib.request.Request(page, headers={"Accept": _ACCEPTED})
    try:
        with _direct.open(request, timeout=_TIMEOUT) as answer:
            return parse(answer.read(_MOST_BYTES).decode("utf-8"))
    except urllib.error.HTTPError as error:
        raise Failed(f"{page} answers {error.code}; give a runner's --url") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        what = "connection refused" if isinstance(reason, ConnectionRefusedError) else one_line(str(reason))
        hint = "start the runner with --http-port, or give its --url"
        raise Failed(f"there is nothing at {page} ({what}); {hint}") from error
    except ValueError as error:
        raise Failed(f"{page} is no page of metrics; give a runner's --url") from error
