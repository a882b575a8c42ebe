"""When to ask for the next action chunk, from measured latency.

A chunk made from the observation of tick t covers the ticks [t, t + chunk). It arrives a latency
later, so the next one must be asked for a latency before the known actions end. One request at a
time is enough up to a latency of half a chunk, and does not flood a server that answers one
after the other. Where the latency is longer, the next one leaves before the last one is answered;
but if answers then come only when all of their actions are over, they were queued, and one at a
time is better.

All times are of this machine's monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

RECENT = 20
"""So many measurements count; the longest of them is planned with."""
MARGIN = 1.5
"""An answer may take so many times longer than any recent one, and still be in time."""
LATE = 3
"""So many answers that come too late one after the other are taken for queued."""
PROBE_S = 10.0
"""For so long one at a time is asked, after answers were queued."""
OVERDUE = 1.5
"""After so many latencies an answer is not counted on any more."""


@dataclass
class _Asked:
    tick: int
    at_s: float
    was_alone: bool


class Schedule:
    """Decides when to ask. Not thread-safe.

    Args:
        chunk: actions in a chunk.
        replan: ask after so many ticks at the latest.
        period_s: of a tick.
        max_in_flight: so many requests may be under way.
    """

    def __init__(self, chunk: int, replan: int, period_s: float, max_in_flight: int = 8) -> None:
        self.chunk = chunk
        self._replan = replan
        self._period_s = period_s
        self._max_in_flight = max_in_flight
        self._alone: deque[float] = deque(maxlen=RECENT)
        self._together: deque[float] = deque(maxlen=RECENT)
        self._queued_until_s = -math.inf
        self._asked: dict[int, _Asked] = {}
        self._count = 0
        self._last_tick: int | None = None

    @property
    def in_flight(self) -> int:
        """Number of requests under way."""
        return len(self._asked)

    @property
    def latency_s(self) -> float | None:
        """Longest recent time from request to answer; None before the first."""
        known = [*self._alone, *self._together]
        return max(known) if known else None

    def is_due(self, tick: int, now_s: float, end: int | None) -> bool:
        """Whether to ask now.

        Args:
            tick: the present one.
            now_s: the present time.
            end: tick behind the last known action, None if there is none.
        """
        latency_s = self.latency_s
        if latency_s is None:
            return not self._asked
        limit = self._limit(now_s)
        ticks = math.ceil(latency_s / self._period_s)
        since = math.inf if self._last_tick is None else tick - self._last_tick
        counted_on = [
            asked for asked in self._asked.values() if now_s - asked.at_s <= OVERDUE * latency_s
        ]
        is_full = len(counted_on) >= limit or self.in_flight >= self._max_in_flight
        if is_full or (limit > 1 and since < ticks / limit):
            return False  # evenly spread: if all left at once, none could for a whole latency
        if since >= self._replan:
            return True
        covered = max([end or 0, *(asked.tick + self.chunk for asked in counted_on)])
        return tick >= covered - math.ceil(MARGIN * latency_s / self._period_s) - 1

    def _limit(self, now_s: float) -> int:
        alone_s = max(self._alone, default=0.0)
        one_is_enough = 2 * math.ceil(alone_s / self._period_s) + 2 <= self.chunk
        return 1 if one_is_enough or now_s < self._queued_until_s else self._max_in_flight

    def measured(self, latency_s: float) -> None:
        """Take note of how long a request took while no other was under way."""
        self._alone.append(latency_s)

    def asked(self, tick: int, now_s: float) -> int:
        """Take note that a request leaves; returns its number."""
        self._count += 1
        self._asked[self._count] = _Asked(tick, now_s, not self._asked)
        for asked in self._asked.values():
            asked.was_alone &= len(self._asked) == 1
        self._last_tick = tick
        return self._count

    def answered(self, number: int, now_s: float, has_come: bool = True) -> None:
        """Take note that a request was answered, or that it never will be."""
        asked = self._asked.pop(number)
        if not has_come:
            return
        if asked.was_alone:
            self.measured(now_s - asked.at_s)
        else:
            self._together.append(now_s - asked.at_s)
            if self._is_late():
                self._queued_until_s = now_s + PROBE_S
        if now_s < self._queued_until_s:
            self._together.clear()

    def _is_late(self) -> bool:
        """Whether the newest answers all came when their actions were over."""
        newest = list(self._together)[-LATE:]
        return len(newest) == LATE and min(newest) >= self.chunk * self._period_s
