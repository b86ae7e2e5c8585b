"""Values that cannot be used, and texts that look as if they could not."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from zart import ZartError


class Broken:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


HUGE = 10**5_000  # more digits than Python turns into text

NO_TEXT: list[Any] = [0, 1.5, True, b"x", [], {}, object(), HUGE, Broken()]
NO_NAME: list[Any] = ["", "x" * 10_000, "a\0b", "\0", "\ud800", "half \udcff", "é" * 300, *NO_TEXT]
NO_COUNT: list[Any] = [-1, 1.5, 1.0, True, math.nan, math.inf, "3", "", b"3", [], HUGE, -HUGE, 10**9, Broken()]
NO_DURATION: list[Any] = [
    -1, -0.001, math.nan, math.inf, -math.inf, 1e300, HUGE, True, Decimal(1), b"1s", [], timedelta(-1), timedelta.max,
    "", " ", "soon", "1", "-1s", "1e3s", "1 s", "1S", "1s1s", "1s\0", "\uff11s", "nan", "infs", "9" * 10_000 + "s",
    "\ud800", Broken(),
]  # fmt: skip

# Texts that PostgreSQL, LIKE, JSON, shells, terminals or formatting might take for something else.
NAMES = [
    "%", "_", "%%", "a%", "a_", "100%_off", "it's", "''", '"quoted"', "back\\slash", "\\", "\\x00", "\\u0000", "%s",
    "{}", "$1", ":schema.", "null", "'; drop schema zart cascade; --", "-", "--help", "a b", " a ", "a\tb", "a\nb",
    "\r", "\x01", "\x1b[31mred", "\x7f", "\x85", "é", "e\u0301", "ß", "İ", "😀", "👩\u200d🚀", "שלום", "\u202eevil",
    "\ufeff", "\uffff", "/", "../..", "a/b", "zart", "x" * 512, "é" * 256, "😀" * 128,
]  # fmt: skip


def shown(value: object) -> str:
    """A value as a test's id shows it."""
    text = f"{type(value).__name__}-{value!a}" if isinstance(value, str | float | bytes) else type(value).__name__
    return text[:40]


def refused(call: Callable[[], object], *words: str) -> None:
    """Check that a call raises a clear error of zart that has all the words."""
    with pytest.raises(ZartError) as caught:
        call()
    check_text(caught.value, *words)


def check_text(error: BaseException, *words: str) -> None:
    """Check that an error's text is one short line that can be stored, with all the words."""
    text = str(error)
    assert len(text) < 1_500, text[:200]
    assert "\n" not in text
    assert "\0" not in text
    text.encode()
    for word in words:
        assert word in text
