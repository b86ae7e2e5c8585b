"""Hosts that are network namespaces of this machine, each on a cable of its own that can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

# Set aside for tests of networks (RFC 2544): no real host has such an address.
_NETWORK = "198.18"


def refusal() -> str:
    """Why there can be no such hosts here, or ""."""
    if not shutil.which("ip"):
        return "`ip` is not installed: apt-get install iproute2"
    name = f"zart-try-{os.getpid()}"
    for arguments in (
        ("netns", "add", name),
        ("-n", name, "link", "add", "try0", "type", "veth", "peer", "try1"),
        ("netns", "exec", name, "true"),
        ("netns", "delete", name),
    ):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            return f"network namespaces are not allowed here: {done.stderr.strip()}"
    return ""


class Host:
    """One of them, from entry to exit.

    Attributes:
        way_out: address of this machine, as the host sees it.
        command: what comes before a command that is to run there.
    """

    def __init__(self, number: int) -> None:
        self._name, self._cable = f"zart-{os.getpid()}-{number}", f"zt{os.getpid()}n{number}"
        self.way_out, self._address = f"{_NETWORK}.{number}.1", f"{_NETWORK}.{number}.2"
        self.command = ["ip", "netns", "exec", self._name]

    def __enter__(self) -> Self:
        _ip("netns", "add", self._name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "cable", "netns", self._name)
        _ip("address", "add", f"{self.way_out}/24", "dev", self._cable)
        _ip("-n", self._name, "address", "add", f"{self._address}/24", "dev", "cable")
        _ip("link", "set", self._cable, "up")
        _ip("-n", self._name, "link", "set", "cable", "up")
        _ip("-n", self._name, "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _ip("netns", "delete", self._name)

    def cut_off(self) -> None:
        """Pull the cable at this machine's end: what either side sends is lost, and nobody is told."""
        _ip("link", "set", self._cable, "down")

    def reconnect(self) -> None:
        _ip("link", "set", self._cable, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
