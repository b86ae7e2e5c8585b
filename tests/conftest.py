"""Fixtures that every test may use."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.support.database"]

# A shell starts what runs in its background with these ignored, and a process that a test starts and interrupts would
# inherit that.
for number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
