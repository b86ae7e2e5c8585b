"""Runner processes as they are, but control serves its metrics on a port, which the file `SCRAPED` tells."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from zart.runner import control
from zart.runner.arbiter import Children
from zart.runner.board import Board
from zart.runner.exposition import BoardCollector, UserMetrics
from zart.runner.options import RunnerOptions

Labels = frozenset[tuple[str, str]]


def scrape(port_file: Path) -> dict[tuple[str, Labels], float]:
    """What the page says, by name and labels; nothing is said twice."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port_file.read_text()}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def _control(
    options: RunnerOptions, board: Board, wakes: tuple[int, ...], link_fd: int, listener: socket.socket | None
) -> int:
    registry = CollectorRegistry()
    registry.register(BoardCollector(board))
    registry.register(UserMetrics())
    server, _ = start_http_server(0, "127.0.0.1", registry)
    Path(os.environ["SCRAPED"]).write_text(str(server.server_port))
    return control.main(options, board, wakes, link_fd, listener)


CHILDREN = Children(control=_control)
