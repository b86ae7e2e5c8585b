"""What was measured with: the machine and the versions. Nothing that names a host, a user or a path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine.

    Args:
        cores: processors that this process may use.
        cpu: their model.
        memory_gib: main memory.
        kernel: version of the operating system's kernel.
    """

    cores: int
    cpu: str
    memory_gib: float
    kernel: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        return cls(
            cores=len(os.sched_getaffinity(0)),
            cpu=_first_value(Path("/proc/cpuinfo"), "model name") or platform.machine(),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            kernel=platform.release().split("-")[0],
        )


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of what takes part."""

    zart: str
    postgresql: str
    python: str
    asyncpg: str
    uvloop: str
    orjson: str

    @classmethod
    def here(cls, postgresql: str) -> Versions:
        """Those of this process and of its server."""
        return cls(
            zart=_version("zart"),
            postgresql=postgresql,
            python=platform.python_version(),
            asyncpg=_version("asyncpg"),
            uvloop=_version("uvloop"),
            orjson=_version("orjson"),
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # used from a checkout
        return "checkout"


def _first_value(path: Path, name: str) -> str:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
