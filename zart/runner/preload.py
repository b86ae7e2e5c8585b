"""Importing the application before the fork, so that all workers share its memory."""

from __future__ import annotations

import gc
import threading

from zart.errors import ZartError
from zart.log import logger
from zart.registry import load_registry

_log = logger("runner")


def preload(app: str) -> str:
    """Import the application into this process; give the reason why it cannot be, or ""."""
    gc.disable()  # what a collection would free leaves holes in pages that are to be shared
    try:
        load_registry(app)
    except ZartError as error:
        return str(error)
    finally:
        gc.enable()
    if names := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        _log.warning(
            "importing %s started threads (%s), which workers will not have, because a fork copies none; start them in"
            " the registry's lifespan",
            app,
            ", ".join(names),
        )
    return ""
