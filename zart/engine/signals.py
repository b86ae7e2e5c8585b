"""How a turn is told to stop. Control signals, not errors."""

from __future__ import annotations

import enum


class Stop(enum.Enum):
    """Why a turn has to stop."""

    HAND_BACK = "handed back"
    PARK = "parked"
    DEADLINE = "deadline reached"
    REFUSED = "value refused by PostgreSQL"
    LOST = "claim lost"


class Suspended(BaseException):
    """Raised by every zart call of a turn that has to stop. Bodies let it pass."""
