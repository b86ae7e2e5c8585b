"""Where the application's own prometheus_client metrics keep their values: a file for each kind and place.

The files belong to places, not to processes: a worker goes on with those of the one before it, so counters never fall,
nothing is lost with a process that is killed, and there are never more files than places need. zart's own metrics are
on the board and use none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any, Final

from prometheus_client import multiprocess, values

from zart.log import logger

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client, and whoever collects, finds the files."""

_files: Any = multiprocess  # both have no types
_values: Any = values
_log = logger("metrics")


class SharedValues:
    """Made by the arbiter before it forks or imports anything of the application's.

    The directory is a private one that is gone with the runner, unless the environment names another.
    """

    def __init__(self) -> None:
        self._own, self._who, self._pid = "", "runner", os.getpid()
        try:
            if given := os.environ.get(DIRECTORY):
                os.makedirs(given, exist_ok=True)
            else:
                os.environ[DIRECTORY] = self._own = tempfile.mkdtemp(prefix="zart-metrics-")
        except OSError as error:
            os.environ.pop(DIRECTORY, None)
            _log.warning("the application's own metrics are not exported: there is no room for their files: %s", error)
        else:
            _values.ValueClass = _values.MultiProcessValue(self._identify)

    def _identify(self) -> str:
        """Whose file it is. A process that user code forks must not write to its parent's."""
        pid = os.getpid()
        return self._who if pid == self._pid else f"{self._who}-{pid}"

    def sit(self, index: int) -> None:
        """In a worker: go on with what its place has."""
        self._who, self._pid = str(index), os.getpid()

    def abstain(self) -> None:
        """In a process that is no worker: what it imports keeps its values to itself."""
        _values.ValueClass = _values.MutexValue

    def forget(self, index: int) -> None:
        """In the arbiter: the worker of a place is gone, and with it what only the living show."""
        if directory := os.environ.get(DIRECTORY):
            try:
                _files.mark_process_dead(index, directory)
            except OSError as error:
                _log.warning("what worker %d told of the application last cannot be taken back: %s", index, error)

    def close(self) -> None:
        """Leave nothing behind."""
        _values.ValueClass = _values.MutexValue
        if self._own:
            os.environ.pop(DIRECTORY, None)
            shutil.rmtree(self._own, ignore_errors=True)
