"""Workflows under test: without a database, on a clock of their own, with crashes where you want them.

    run = zart.testing.Run(onboarding, Signup("ada@example.com"))
    run.crash_after("send-email")
    assert await run.result() == Receipt("ada@example.com")

`import zart` does not load this package; say `import zart.testing`. docs/testing.md tells more.
"""

from __future__ import annotations

from zart.testing.everywhere import CrashMattered, crash_everywhere
from zart.testing.run import CrashNotReached, Run
from zart.testing.world import RunStuck

__all__ = ["CrashMattered", "CrashNotReached", "Run", "RunStuck", "crash_everywhere"]
