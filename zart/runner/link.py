"""What the arbiter and control say to each other: deaths one way, acknowledgements the other.

A death is sent by value, because its place on the board is used again at once, and it is kept until control
acknowledges it, so a control that is made again is told of it again.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STOP: Final = b"stop"
"""The arbiter's last message: no more deaths will come, end when the last is dealt with."""
MESSAGE_BYTES: Final = 16384


@dataclass(frozen=True, slots=True)
class Death:
    """A worker process that ended.

    Args:
        number: rises by one per death.
        worker_ids: its ids, in the order in which they are to be taken over.
        running: numeric ids of the executions whose code ran when it ended; None when that is not known.
        how: how it ended, as `signal SIGSEGV`.
        step: the step begun last by an execution that it ran alone, or "".
    """

    number: int
    worker_ids: tuple[int, ...]
    running: tuple[int, ...] | None
    how: str = ""
    step: str = ""

    def encode(self) -> bytes:
        return json.dumps([self.number, self.worker_ids, self.running, self.how, self.step]).encode()

    @classmethod
    def decode(cls, message: bytes) -> Death:
        number, worker_ids, running, how, step = json.loads(message)
        return cls(number, tuple(worker_ids), None if running is None else tuple(running), how, step)


class DeathLink:
    """The arbiter's end: keeps deaths until they are acknowledged. Nothing in it waits."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._unacknowledged: dict[int, Death] = {}
        self._unsent: list[bytes] = []
        self._last = 0
        self._stopping = False

    def open(self) -> socket.socket:
        """Begin with a control about to be forked: give its end, and say everything again that none acknowledged."""
        self.close()
        mine, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        self._socket = mine
        self._unsent = [death.encode() for death in self._unacknowledged.values()]
        if self._stopping:
            self._unsent.append(STOP)
        return others

    def close(self) -> None:
        """There is no control any more, but what it acknowledged before counts."""
        if self._socket is not None:
            self._receive(self._socket)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the socket unread, as a forked child does."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def report(self, worker_ids: Sequence[int], running: Sequence[int] | None, how: str = "", step: str = "") -> None:
        """Have control release what a dead worker held."""
        self._last += 1
        death = Death(self._last, tuple(worker_ids), None if running is None else tuple(running), how, step)
        self._unacknowledged[death.number] = death
        self._unsent.append(death.encode())

    def stop(self) -> None:
        """Have control end when it has acknowledged every death."""
        if not self._stopping:
            self._stopping = True
            self._unsent.append(STOP)

    @property
    def waiting(self) -> int:
        """How many deaths are not acknowledged."""
        return len(self._unacknowledged)

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def fileno(self) -> int:
        """The socket to wait on, -1 while there is no control."""
        return -1 if self._socket is None else self._socket.fileno()

    def exchange(self) -> None:
        """Send and receive what can go without waiting."""
        if self._socket is None:
            return
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                del self._unsent[0]
        except BlockingIOError:
            pass
        except OSError:  # control is gone; the next one is told from the start
            self.close()
            return
        if not self._receive(self._socket):
            self.abandon()

    def _receive(self, link: socket.socket) -> bool:
        """Take in what was acknowledged; False when nothing more can come."""
        while True:
            try:
                message = link.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return True
            except ConnectionResetError:  # told once, when control ended with messages unread; then comes what it sent
                continue
            if not message:
                return False
            self._unacknowledged.pop(int(message), None)
