"""Durations and retry texts: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart.duration import MAX_SECONDS, RetryConfig, retry_of, seconds_of, timeout_of
from zart.errors import InvalidArgument, NonRetryable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("3d", 259_200.0),
        (" 5s ", 5.0),
        (2, 2.0),
        (0.25, 0.25),
        (0, 0.0),
        (timedelta(minutes=1, milliseconds=1), 60.001),
    ],
)
def test_a_duration_is_read_as_seconds(value: Any, seconds: float) -> None:
    assert seconds_of(value, "timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "5", "s", "5 s", "-5s", "1e3s", ".5s", "5.s", "5sec", "1h30m", "٣s", "5S", None, True, False, [1], b"5s"],
)
def test_what_is_no_duration_is_refused_with_the_accepted_forms(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"lease_timeout must be a timedelta, seconds as a number, or text"):
        seconds_of(value, "lease_timeout")


@pytest.mark.parametrize(
    "value", [-1, -0.001, math.nan, math.inf, -math.inf, 10**400, 1e300, timedelta(seconds=-1), timedelta.max, "36526d"]
)
def test_a_duration_outside_its_bounds_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="lease_timeout must be from 0 seconds to 100 years"):
        seconds_of(value, "lease_timeout")


def test_a_text_with_very_many_digits_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="100 years"):
        seconds_of("9" * 5000 + "s", "timeout")


def test_a_timeout_of_zero_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than 0 seconds"):
        timeout_of("0s", "timeout")


def test_no_timeout_is_none() -> None:
    assert timeout_of(None, "timeout") is None


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("none", RetryConfig.none()),
        ("fixed(3, 1s)", RetryConfig.fixed(3, "1s")),
        (" fixed( 3 ,1s ) ", RetryConfig.fixed(3, 1)),
        ("fixed(0, 0s)", RetryConfig.fixed(0, 0)),
        ("exponential(3, 2s)", RetryConfig.exponential(3, "2s")),
        (
            "exponential(3, 2s, max_delay=1m, jitter=0.2)",
            RetryConfig.exponential(3, "2s", max_delay="1m", jitter=0.2),
        ),
        ("exponential(3, 500ms, jitter=0)", RetryConfig.exponential(3, 0.5, jitter=0)),
    ],
)
def test_a_retry_text_means_what_the_function_of_its_name_makes(text: str, config: RetryConfig) -> None:
    assert RetryConfig.parse(text) == config
    assert retry_of(text) == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "never",
        "3",
        "fixed",
        "fixed()",
        "fixed(3)",
        "fixed(3, 1s, 2s)",
        "fixed(3, 1s,)",
        "fixed(-3, 1s)",
        "fixed(3.5, 1s)",
        "fixed(3, 1)",
        "fixed(3, 1s, jitter=0.1)",
        "fixed(3, 1s) ...",
        "fixed(999999999, 1s)",
        "exponential(3, 2x)",
        "exponential(3, 2s, jitter=2)",
        "exponential(3, 2s, jitter=a)",
        "exponential(3, 2s, jitter=0.1, jitter=0.2)",
        "exponential(3, 2s, factor=3)",
        "exponential(3, 2m, max_delay=1m)",
        "linear(3, 1s)",
    ],
)
def test_an_unparsable_retry_text_is_shown_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        RetryConfig.parse(text)
    assert repr(text) in str(caught.value)
    for form in ('"none"', '"fixed(3, 1s)"', '"exponential(3, 2s)"', "max_delay=1m, jitter=0.2"):
        assert form in str(caught.value)


def test_a_retry_that_is_no_text_is_refused_by_name() -> None:
    wrong: Any = 3
    with pytest.raises(InvalidArgument, match="retry of step 'x' must be a RetryConfig"):
        retry_of(wrong, "retry of step 'x'")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetryConfig.fixed(-1, "1s"),
        lambda: RetryConfig.fixed(40_000, "1s"),
        lambda: RetryConfig(retries=True),
        lambda: RetryConfig.exponential(1, "1s", jitter=math.nan),
        lambda: RetryConfig.exponential(1, "1s", jitter=-0.1),
        lambda: RetryConfig.fixed(1, "1s", retry_on="ValueError"),  # type: ignore[arg-type]
        lambda: RetryConfig.fixed(1, "1s", retry_on=(int,)),  # type: ignore[arg-type]
    ],
)
def test_retries_outside_their_bounds_are_refused(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


def test_a_fixed_delay_is_always_the_same() -> None:
    config = RetryConfig.fixed(5, "1500ms")
    assert {config.delay(retry, chance) for retry in (1, 2, 5) for chance in (0.0, 0.5, 0.99)} == {1.5}


def test_an_exponential_delay_doubles_up_to_its_longest() -> None:
    config = RetryConfig.exponential(9, "2s", max_delay="10s", jitter=0)
    assert [config.delay(retry, 0.5) for retry in (1, 2, 3, 4, 9)] == [2, 4, 8, 10, 10]


def test_jitter_takes_off_up_to_its_share() -> None:
    config = RetryConfig.exponential(3, "10s", jitter=0.2)
    assert config.delay(1, 0.0) == pytest.approx(10)
    assert config.delay(1, 0.5) == pytest.approx(9)


@given(
    retry=st.integers(1, 10**9),
    chance=st.floats(0, 1, exclude_max=True),
    base=st.floats(0, 3600),
    longest=st.floats(3600, MAX_SECONDS),
    jitter=st.floats(0, 1),
)
def test_a_delay_is_never_negative_nor_longer_than_the_longest(
    retry: int, chance: float, base: float, longest: float, jitter: float
) -> None:
    delay = RetryConfig.exponential(3, base, max_delay=longest, jitter=jitter).delay(retry, chance)
    assert 0 <= delay <= longest


def test_every_exception_is_retried_by_default_and_nothing_else() -> None:
    config = RetryConfig.fixed(1, 1)
    assert config.allows(ValueError())
    assert not config.allows(KeyboardInterrupt())


def test_retry_on_takes_types_and_a_function() -> None:
    assert RetryConfig.fixed(1, 1, retry_on=LookupError).allows(KeyError())
    assert not RetryConfig.fixed(1, 1, retry_on=(LookupError, OSError)).allows(ValueError())
    assert RetryConfig.fixed(1, 1, retry_on=lambda error: "busy" in str(error)).allows(ValueError("busy"))


def test_non_retryable_is_never_retried_whatever_retry_on_says() -> None:
    assert not RetryConfig.fixed(1, 1, retry_on=Exception).allows(NonRetryable())
