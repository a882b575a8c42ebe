"""What the broker has confirmed so shortly before that it may still forget it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from agentlace import codec

FORGETFUL_S = 3.0
"""A broker that is killed may have forgotten what it confirmed so shortly before (everysec)."""
RECENT_MAX_BYTES = 64 << 20
"""No more than this is kept for a broker that forgets."""


@dataclass
class Sent:
    """A chunk on its way, or there: the numbers of its first and last transition, its frame."""

    first: int
    last: int
    frame: codec.Frame
    was_sent: bool = False
    confirmed: float = 0.0


class Recent:
    """Copies of confirmed chunks, for as long as the broker may forget them."""

    def __init__(self) -> None:
        self._chunks: deque[Sent] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        """Return the number of chunks that are kept."""
        return len(self._chunks)

    def keep(self, chunk: Sent) -> None:
        """Keep a copy of a chunk that was confirmed now; its arrays may change from now on."""
        now, size = time.monotonic(), chunk.frame.nbytes
        copy = codec.Frame([chunk.frame.copy()], size)
        self._chunks.append(Sent(chunk.first, chunk.last, copy, confirmed=now))
        self._nbytes += size
        while self._chunks and (
            now - self._chunks[0].confirmed > FORGETFUL_S or self._nbytes > RECENT_MAX_BYTES
        ):
            self._nbytes -= self._chunks.popleft().frame.nbytes

    def take_after(self, number: int) -> list[Sent]:
        """Return the chunks with transitions after this one, oldest first, and keep the others."""
        taken = [chunk for chunk in self._chunks if chunk.last > number]
        self._chunks = deque(chunk for chunk in self._chunks if chunk.last <= number)
        self._nbytes = sum(chunk.frame.nbytes for chunk in self._chunks)
        return taken

    def clear(self) -> None:
        """Forget all: a new incarnation begins."""
        self._chunks.clear()
        self._nbytes = 0
