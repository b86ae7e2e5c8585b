"""Whether a failed try is followed by another, and when. Pure but for the jitter's chance."""

from __future__ import annotations

import random

from zart.duration import RetryConfig
from zart.errors import DuplicateStepName, NonRetryable, NotInBody, NotInStep, StepDiverged, TransactionMisused

# Mistakes of the program: another pass over the same journal would only repeat them.
_HOPELESS = (NonRetryable, DuplicateStepName, StepDiverged, NotInBody, NotInStep, TransactionMisused)


def delay_before_retry(retry: RetryConfig, attempt: int, error: BaseException) -> float | None:
    """Seconds until the next try after try number `attempt` (0-based) failed; None when there is none."""
    if attempt >= retry.retries or isinstance(error, _HOPELESS) or not retry.allows(error):
        return None
    return retry.delay(attempt + 1, random.random())
