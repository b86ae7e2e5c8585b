"""Durations as users write them, and how failed work is retried."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias, cast

from zart.errors import InvalidArgument, NonRetryable, shown

Duration: TypeAlias = timedelta | float | str
"""A timedelta, a number of seconds, or text such as "500ms", "1.5s", "10m", "2h", "3d"."""

RetryOn: TypeAlias = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""Which errors are retried: exception types, or a function that says so."""

# Longer durations are mistakes, and PostgreSQL's timestamps end somewhere too.
MAX_SECONDS = 100 * 365.25 * 86_400
# The number of a try is stored as a smallint.
MAX_RETRIES = 30_000

_DEFAULT_MAX_DELAY = 3600.0
_DEFAULT_JITTER = 0.1

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_FORMS = 'a timedelta, seconds as a number, or text such as "500ms", "1.5s", "10m", "2h", "3d"'

_CALL = re.compile(r"(fixed|exponential)\((.*)\)")
_COUNT = re.compile(r"[0-9]{1,6}")
_FRACTION = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_RETRY_FORMS = '"none", "fixed(3, 1s)", "exponential(3, 2s)" or "exponential(3, 2s, max_delay=1m, jitter=0.2)"'


def seconds_of(value: Duration, what: str) -> float:
    """The seconds in a duration.

    Args:
        value: a timedelta, a number of seconds, or a number with one of the units ms, s, m, h, d.
        what: the name of the argument, for the error's text.

    Raises:
        InvalidArgument: it is no duration, negative, not finite, or longer than 100 years.

    Example:
        >>> seconds_of("1.5m", "timeout")
        90.0
    """
    seconds = _plain_seconds(value)
    if seconds is None:
        raise InvalidArgument(f"{what} must be {_FORMS}, got {shown(value)}")
    if not 0 <= seconds <= MAX_SECONDS:
        raise InvalidArgument(f"{what} must be from 0 seconds to 100 years, got {shown(value)}")
    return seconds


def timeout_of(value: Duration | None, what: str) -> float | None:
    """The seconds of a timeout; None is none.

    Raises:
        InvalidArgument: it is no duration, or zero.
    """
    if value is None:
        return None
    seconds = seconds_of(value, what)
    if not seconds:
        raise InvalidArgument(f"{what} must be more than 0 seconds, got {shown(value)}; None means no timeout")
    return seconds


def _plain_seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        found = _TEXT.fullmatch(value.strip())
        return float(found[1]) * _UNIT_SECONDS[found[2]] if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MAX_SECONDS else math.inf


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """How often and how soon failed work is tried again. Made by `none`, `fixed`, `exponential` or `parse`.

    Attributes:
        retries: tries after the first one.
        base: seconds before the first retry.
        factor: what each further delay is multiplied by.
        max_delay: longest delay in seconds.
        jitter: share of each delay, from 0 to 1, that chance may take off it.
        retry_on: which errors are retried; None retries every Exception. NonRetryable never is.

    Raises:
        InvalidArgument: a value is out of its bounds.
    """

    retries: int = 0
    base: float = 0.0
    factor: float = 1.0
    max_delay: float = _DEFAULT_MAX_DELAY
    jitter: float = 0.0
    retry_on: RetryOn | None = None

    def __post_init__(self) -> None:
        if type(self.retries) is not int or not 0 <= self.retries <= MAX_RETRIES:
            raise InvalidArgument(f"retries must be a whole number from 0 to {MAX_RETRIES}, got {shown(self.retries)}")
        if not _is_number(self.factor) or not 1 <= self.factor <= 1000:
            raise InvalidArgument(f"the factor of a retry must be from 1 to 1000, got {shown(self.factor)}")
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise InvalidArgument(f"jitter must be a number from 0 to 1, got {shown(self.jitter)}")
        object.__setattr__(self, "base", seconds_of(self.base, "the delay of a retry"))
        object.__setattr__(self, "max_delay", seconds_of(self.max_delay, "max_delay"))
        if self.max_delay < self.base:
            raise InvalidArgument(
                f"max_delay must be at least the first delay, got {self.max_delay:g} s after {self.base:g} s"
            )
        if self.retry_on is not None and not _is_retry_on(self.retry_on):
            raise InvalidArgument(
                f"retry_on must be an exception type, a tuple of them or a plain function, got {shown(self.retry_on)}"
            )

    @classmethod
    def none(cls) -> RetryConfig:
        """Never retried."""
        return _NONE

    @classmethod
    def fixed(cls, n: int, delay: Duration, *, retry_on: RetryOn | None = None) -> RetryConfig:
        """Up to `n` retries, each after the same delay.

        Example:
            >>> RetryConfig.fixed(3, "1s").delay(2, chance=0.5)
            1.0
        """
        seconds = seconds_of(delay, "the delay of a retry")
        return cls(n, seconds, max_delay=seconds, retry_on=retry_on)

    @classmethod
    def exponential(
        cls,
        n: int,
        base: Duration,
        *,
        max_delay: Duration = _DEFAULT_MAX_DELAY,
        jitter: float = _DEFAULT_JITTER,
        retry_on: RetryOn | None = None,
    ) -> RetryConfig:
        """Up to `n` retries; the delay is `base` at first and doubles each time, up to `max_delay` (1 h).

        `jitter` is the share of each delay that chance may take off it.

        Example:
            >>> RetryConfig.exponential(3, "2s").delay(3, chance=0.0)
            8.0
        """
        seconds = seconds_of(base, "the delay of a retry")
        return cls(n, seconds, 2.0, seconds_of(max_delay, "max_delay"), jitter, retry_on)

    @classmethod
    def parse(cls, text: str) -> RetryConfig:
        """Read `none`, `fixed(n, delay)` or `exponential(n, base[, max_delay=...][, jitter=...])`.

        Raises:
            InvalidArgument: the text is none of these; the message shows it and the accepted forms.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"a retry must be one of the texts {_RETRY_FORMS}, got {shown(text)}")
        try:
            made = _read_retry(text.strip())
        except InvalidArgument as error:
            raise InvalidArgument(f"cannot read the retry text {shown(text)}: {error}; use {_RETRY_FORMS}") from None
        if made is None:
            raise InvalidArgument(f"cannot read the retry text {shown(text)}; use {_RETRY_FORMS}")
        return made

    def delay(self, retry: int, chance: float) -> float:
        """Seconds before retry number `retry` (the first is 1); `chance`, from 0 to 1, decides the jitter."""
        try:
            grown = self.base * self.factor ** (retry - 1)
        except OverflowError:
            grown = self.max_delay if self.base else 0.0
        return min(grown, self.max_delay) * (1 - self.jitter * chance)

    def allows(self, error: BaseException) -> bool:
        """Whether this error is one to retry; the number of tries is not looked at."""
        if isinstance(error, NonRetryable):
            return False
        chosen = self.retry_on
        if chosen is None:
            return isinstance(error, Exception)
        if isinstance(chosen, type | tuple):
            return isinstance(error, chosen)
        return bool(chosen(error))


Retry: TypeAlias = RetryConfig | str | None
"""How the decorators take a RetryConfig: itself, its text, or None for none."""


def retry_of(value: Retry, what: str = "retry") -> RetryConfig:
    """The RetryConfig that a user's argument stands for; None is `none`.

    Raises:
        InvalidArgument: it is neither a RetryConfig, nor readable text, nor None.
    """
    if value is None:
        return _NONE
    if isinstance(value, RetryConfig):
        return value
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"{what} must be a RetryConfig or one of the texts {_RETRY_FORMS}, got {shown(value)}")
    try:
        return RetryConfig.parse(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{what}: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_retry_on(value: object) -> bool:
    if isinstance(value, tuple):
        types = cast("tuple[object, ...]", value)
        return all(isinstance(one, type) and issubclass(one, BaseException) for one in types)
    if isinstance(value, type):
        return issubclass(value, BaseException)
    return callable(value) and not inspect.iscoroutinefunction(value)


def _read_retry(text: str) -> RetryConfig | None:
    if text == "none":
        return _NONE
    found = _CALL.fullmatch(text)
    if not found:
        return None
    count, *rest = (piece.strip() for piece in found[2].split(","))
    options = _options(rest[1:])
    if not _COUNT.fullmatch(count) or not rest or options is None:
        return None
    delay = rest[0]
    if found[1] == "fixed":
        return None if options else RetryConfig.fixed(int(count), delay)
    jitter = options.pop("jitter", str(_DEFAULT_JITTER))
    max_delay = options.pop("max_delay", _DEFAULT_MAX_DELAY)
    if options or not _FRACTION.fullmatch(jitter):
        return None
    return RetryConfig.exponential(int(count), delay, max_delay=max_delay, jitter=float(jitter))


def _options(pieces: list[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for piece in pieces:
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or name in found:
            return None
        found[name] = value
    return found


_NONE = RetryConfig()
