"""Children for the arbiter that touch no database. What they do is told by files in the directory `STAND_IN`.

    fail        the probe fails with the text of the file
    unable      workers cannot start, with the text of the file
    crash       workers are killed before they are ready
    away        workers find no database
    orphans     workers leave behind a process that ends after its parent
    broken-<pid>  that worker, at work, finds that it cannot go on, with the text of the file
    still-<pid>  the loop of that worker stands still, in C code if the text is "computing"
    served-<pid>  that worker has served so many executions as the file says
    fat-<pid>   that worker takes so many bytes of memory as the file says
    stubborn    workers ignore SIGTERM
    uncontrolled  control ends before it is at work
    forgetful   control does not acknowledge
A worker makes the file `worker-<pid>` when it is ready and control `control-<pid>`; deaths go to the file `deaths`. How
many workers are at work besides one that begins or ends goes to the file `company`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

from zart.meters import EXECUTIONS_COMPLETED
from zart.metrics import Place
from zart.runner import child
from zart.runner.arbiter import Children
from zart.runner.board import CONTROL_READY, Board
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
    if _told("away") is not None:
        return child.EXIT_NO_DATABASE
    if _told("crash") is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    if _told("orphans") is not None:
        _leave_an_orphan()
    place = board.places[index]
    others = [other for other in board.places if other is not place]
    if _told("stubborn") is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: _end(others))
    place.ready, place.executing, place.previous_id = 1, 7, 5
    _tell("company", f"{_at_work(others)}\n")
    _tell(f"worker-{os.getpid()}", str(place.worker_id))
    return _work(board, index)


def _work(board: Board, index: int) -> int:
    place, ballast = board.places[index], b""
    while True:
        place.loop_count += 1
        if (how := _told(f"still-{os.getpid()}")) is not None:
            stand_still(how)
        if (count := _told(f"served-{os.getpid()}")) is not None:
            place.words[EXECUTIONS_COMPLETED] += int(count)
            Path(os.environ["STAND_IN"], f"served-{os.getpid()}").unlink()
        if (size := _told(f"fat-{os.getpid()}")) is not None and not ballast:
            ballast = os.urandom(int(size))
        if (reason := _told(f"broken-{os.getpid()}")) is not None:
            board.say(reason, index)
            return child.EXIT_CANNOT_START
        time.sleep(0.01)


def stand_still(how: str) -> None:
    """What a stalled worker is found in: asleep, or in C code that keeps the interpreter's lock."""
    if how == "computing":
        re.fullmatch("(a+)+", "a" * 64 + "b")
    else:
        time.sleep(600)


def _at_work(places: list[Place]) -> int:
    return sum(1 for place in places if place.ready and place.pid)


def _end(others: list[Place]) -> None:
    _tell("company", f"{_at_work(others)}\n")
    os._exit(0)


def _leave_an_orphan() -> None:
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    between = os.getpid()
    if os.fork() == 0:
        while os.getppid() == between:
            time.sleep(0.01)
        _tell(f"orphan-{os.getpid()}")
    os._exit(0)


def control(_: RunnerOptions, board: Board, __: tuple[int, ...], link_fd: int, ___: object) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _told("uncontrolled") is not None:
        return 1
    board.header[CONTROL_READY] = 1
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
