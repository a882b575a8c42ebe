"""When a store may be sampled: not before it has enough, and not more often than it is filled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from agentlace.errors import Closed, NotEnoughData
from agentlace.waits import waiting

log = logging.getLogger(__name__)

SLICE_S = 0.2
"""So often a waiter looks whether it shall stop."""
REPORT_INTERVAL_S = 5.0


class RateLimiter:
    """Lets samples through when enough was inserted. For one sampling thread.

    What was loaded in advance (a store's ``preloaded``) does not count as inserted: it neither
    lets samples through nor asks for any. Inserts are never held back.

    Args:
        min_size: transitions that must have been inserted before the first sample.
        samples_per_insert: how often a transition is sampled on average, at most; a learner
            with a batch of 256 and 4 updates per step has 1024. No limit if None.

    Attributes:
        sampled: transitions that were sampled so far.

    Raises:
        ValueError: a minimum below 0, or a ratio that is not positive.
    """

    def __init__(self, min_size: int = 1, samples_per_insert: float | None = None) -> None:
        if min_size < 0 or (samples_per_insert is not None and samples_per_insert <= 0):
            raise ValueError(
                f"min_size={min_size} must not be negative, and "
                f"samples_per_insert={samples_per_insert} must be positive"
            )
        self.min_size = min_size
        self.samples_per_insert = samples_per_insert
        self.sampled = 0

    def waits_for(self, store: Any, n: int) -> str | None:
        """Return what is missing for the next ``n`` samples of a store, None if nothing is."""
        inserted = store.inserted - store.preloaded
        if inserted < self.min_size:
            return f"{inserted:,} of {self.min_size:,} transitions inserted"
        if self.samples_per_insert is None:
            return None
        missing = (self.sampled + n) / self.samples_per_insert - inserted
        if missing <= 0:
            return None
        return (
            f"{inserted:,} transitions inserted and {self.sampled:,} sampled, the next {n:,} need "
            f"{missing:,.0f} more (samples_per_insert={self.samples_per_insert:g})"
        )

    def wait(
        self,
        store: Any,
        n: int,
        timeout_s: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until ``n`` more transitions may be sampled, and count them as sampled.

        Logs every few seconds what it waits for.

        Args:
            store: a sampled store, or a mixture of several.
            n: size of the batch.
            timeout_s: waits without end if None.
            stopping: tells that it shall give up; looked at several times a second.

        Raises:
            NotEnoughData: the time is over; the message says what was missing.
            Closed: told to give up.
        """
        if self.waits_for(store, n) is not None:
            with waiting("trainer", lambda: self.waits_for(store, n)):
                self._wait(store, n, timeout_s, stopping)
        self.sampled += n

    def _wait(
        self, store: Any, n: int, timeout_s: float | None, stopping: Callable[[], bool]
    ) -> None:
        started = reported = time.monotonic()
        while (missing := self.waits_for(store, n)) is not None:
            if stopping():
                raise Closed("stopped while waiting for transitions")
            now = time.monotonic()
            if timeout_s is not None and now - started >= timeout_s:
                raise NotEnoughData(missing, timeout_s)
            if now - reported >= REPORT_INTERVAL_S:
                log.info("sampling waits for transitions: %s", missing)
                reported = now
            left_s = SLICE_S if timeout_s is None else min(SLICE_S, started + timeout_s - now)
            store.wait_until(lambda: self.waits_for(store, n) is None, left_s)
