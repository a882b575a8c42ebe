"""Whether it pays to wait for further calls before a batch begins."""

from __future__ import annotations

from collections import OrderedDict

LATELY_S = 1.0
"""Who has called within this time may do so again."""
CALLERS_MAX = 4096
SKIPS_MAX = 63
"""So many waits are left out after many that were in vain."""


class Traffic:
    """Who calls one interface, and whether waiting for them has paid. Not thread-safe.

    A batch waits only for callers that called lately and are not in it: a client that is alone
    never waits. Where waiting was in vain (robots that call ten times a second, each at its own
    time), it is tried again only after one, three, seven… batches.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._skip = 0
        self._skips = 0

    def note(self, caller: bytes, now_s: float) -> None:
        """Take note of a call."""
        self._seen[caller] = now_s
        self._seen.move_to_end(caller)
        while self._seen and (
            len(self._seen) > CALLERS_MAX or next(iter(self._seen.values())) < now_s - LATELY_S
        ):
            self._seen.popitem(last=False)

    def others(self, present: set[bytes], now_s: float) -> int:
        """Return how many callers called lately and are not among those that are present."""
        since_s = now_s - LATELY_S
        return sum(at_s >= since_s and c not in present for c, at_s in self._seen.items())

    def is_worth_a_wait(self) -> bool:
        """Whether to wait this time."""
        if self._skip:
            self._skip -= 1
            return False
        return True

    def note_wait(self, gained: int) -> None:
        """Take note of how many calls came while one waited."""
        self._skips = 0 if gained else min(2 * self._skips + 1, SKIPS_MAX)
        self._skip = self._skips
