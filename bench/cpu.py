"""Processor time from /proc, in seconds. Linux only; its unit there is 10 ms."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor seconds used until now.

    Args:
        server: by all processes of the PostgreSQL server, ended ones too.
        clients: by the processes that do the work.
        supervisors: by those that only look after them.
        machine: by everything on the machine.
    """

    server: float
    clients: float
    supervisors: float
    machine: float

    def since(self, before: CpuTimes) -> CpuTimes:
        """What was used between `before` and this."""
        return CpuTimes(
            server=self.server - before.server,
            clients=self.clients - before.clients,
            supervisors=self.supervisors - before.supervisors,
            machine=self.machine - before.machine,
        )

    @property
    def others(self) -> float:
        """What programs that have no part in the measurement used."""
        return max(0.0, self.machine - self.server - self.clients - self.supervisors)


def cpu_times(postmaster: int, clients: Iterable[int], supervisors: Iterable[int] = ()) -> CpuTimes:
    """Processor seconds of a server and of these process ids, as they stand."""
    return CpuTimes(
        server=_of_family(postmaster),
        clients=sum(map(_of_process, clients)),
        supervisors=sum(map(_of_process, supervisors)),
        machine=_of_machine(),
    )


def _of_process(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND if fields else 0.0


def _of_family(parent: int) -> float:
    """A process, its children that live, and those that it has seen end."""
    while True:
        before, children = _stat(parent), 0
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (child := _stat(int(entry))) and int(child[1]) == parent:
                children += int(child[11]) + int(child[12])
        after = _stat(parent)
        if after[13:15] == before[13:15]:  # no child was buried while we looked, or we would have missed its time
            return (sum(int(field) for field in after[11:15]) + children) / _TICKS_PER_SECOND


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, ppid, ...; [] when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _of_machine() -> float:
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(None, 8)[1:8])
    return (user + nice + system + irq + softirq) / _TICKS_PER_SECOND
