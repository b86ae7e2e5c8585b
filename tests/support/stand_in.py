"""Children for the arbiter that touch no database. What they do is told by files in the directory `STAND_IN`.

    fail        the probe fails with the text of the file
    unable      workers cannot start, with the text of the file
    broken-<pid>  that worker, at work, finds that it cannot go on, with the text of the file
    stubborn    workers ignore SIGTERM
    slow-death  control does not acknowledge
A worker makes the file `worker-<pid>` when it is ready and control `control-<pid>`; deaths go to the file `deaths`.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from zart.runner import child
from zart.runner.arbiter import Children
from zart.runner.board import Board
from zart.runner.link import MESSAGE_BYTES, STOP, Death
from zart.runner.options import RunnerOptions


def _told(name: str) -> str | None:
    path = Path(os.environ["STAND_IN"], name)
    return path.read_text() if path.exists() else None


def _tell(name: str, text: str = "") -> None:
    with Path(os.environ["STAND_IN"], name).open("a") as file:
        file.write(text)


def probe(_: RunnerOptions, board: Board) -> int:
    if (reason := _told("fail")) is not None:
        board.say(reason)
        return child.EXIT_CANNOT_START
    return 0


def worker(_: RunnerOptions, board: Board, index: int, __: int) -> int:
    if (reason := _told("unable")) is not None:
        board.say(reason, index)
        return child.EXIT_CANNOT_START
    if _told("stubborn") is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    place = board.places[index]
    place.ready, place.executing, place.previous_id = 1, 7, 5
    _tell(f"worker-{os.getpid()}", str(place.worker_id))
    while True:
        place.loop_count += 1
        while _told(f"still-{os.getpid()}") is not None:
            time.sleep(0.01)
        if (reason := _told(f"broken-{os.getpid()}")) is not None:
            board.say(reason, index)
            return child.EXIT_CANNOT_START
        time.sleep(0.01)


def control(_: RunnerOptions, __: Board, ___: tuple[int, ...], link_fd: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=link_fd) as link:
        _tell(f"control-{os.getpid()}")
        while (message := link.recv(MESSAGE_BYTES)) not in (STOP, b""):
            death = Death.decode(message)
            running = "?" if death.running is None else ",".join(map(str, death.running))
            _tell("deaths", f"{death.number} {','.join(map(str, death.worker_ids))} [{running}]\n")
            if _told("forgetful") is None:
                link.send(str(death.number).encode())
    return 0


CHILDREN = Children(probe=probe, worker=worker, control=control)
