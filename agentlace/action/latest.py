"""The newest observation, without a round trip."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Latest:
    """The newest observation that has arrived.

    Attributes:
        obs: the observation. Until a newer one comes it is the same object for everybody who
            asks: copy what you change.
        sequence: its number among those of its server, from 1; a restarted server counts anew.
        captured_ms: when it was captured, in milliseconds since the epoch by the broker's clock;
            None from a server of an earlier version.
        captured_s: the same by this machine's ``time.monotonic()``; from a server of an earlier
            version, when it arrived here.
        error_s: how far off ``captured_s``, and so the age, may be: half of the shortest round
            trips between broker and server, and between broker and client.
        missed: observations that were published since the watch began, and never arrived here.
    """

    obs: Any
    sequence: int
    captured_ms: float | None
    captured_s: float
    error_s: float
    missed: int

    @property
    def age_s(self) -> float:
        """How long ago it was captured, in seconds, now."""
        return time.monotonic() - self.captured_s
