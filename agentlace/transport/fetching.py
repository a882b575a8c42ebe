"""How much a consumer fetches at a time, and when it rests."""

from __future__ import annotations

import threading
import time
from typing import Any

BATCH_ENTRIES = 32
"""So many chunks of each actor are fetched at a time, if they are not too large."""
BATCH_BYTES = 32 << 20
"""When more than this was fetched at a time, it is half as many chunks the next time."""
REST_S = 0.001
"""So long a consumer rests between reads that bring something again and again."""
REST_BELOW_S = 0.005


class Fetching:
    """Learns from what came how much to fetch next. For the consumer's own thread.

    Args:
        stop: ends a rest.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._read_at = 0.0
        self.entries = 1

    def count(self, actors: int) -> int:
        """Return how many chunks of each actor to fetch: with many actors, fewer of each."""
        return max(1, min(self.entries, BATCH_ENTRIES // max(1, actors)))

    def adapt(self, reply: Any) -> None:
        """Fetch more at a time if the chunks are small, fewer if they are large."""
        sizes = (len(fields[-1]) for _, entries in reply for _, fields in entries)
        if sum(sizes) > BATCH_BYTES:
            self.entries = max(1, self.entries // 2)
        else:
            self.entries = min(BATCH_ENTRIES, 2 * self.entries)

    def rest(self, has_read: bool) -> None:
        """Where chunks come thick and fast, let some come together: waking costs more than one."""
        now = time.monotonic()
        if has_read and now - self._read_at < REST_BELOW_S:
            self._stop.wait(REST_S)
        self._read_at = now
