"""Fixtures that every test may use."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.support.database", "tests.support.tree"]

# A shell starts what runs in its background with some of these ignored, and a process that a test starts and signals
# would inherit that.
for number, action in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, action)
