"""What the broker has confirmed, and would have forgotten if it came back older than it was."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass

from agentlace import codec

HELD_MAX_BYTES = 64 << 20
"""No more than this is held of one actor's stream; the oldest go first."""
CHUNK, MARK = "chunk", "mark"
"""The field of an entry that holds transitions, and that of one that holds a mark."""


@dataclass
class Sent:
    """A chunk or mark on its way, or there: the numbers of its first and last row, its frame.

    A mark has one number, and no transition; ``field`` tells what it is. ``is_own`` tells whether
    the frame's memory is nobody else's, so that it stays as it is.
    """

    first: int
    last: int
    frame: codec.Frame
    was_sent: bool = False
    confirmed: float = 0.0
    field: str = CHUNK
    is_own: bool = False

    def own(self) -> None:
        """Copy the frame, unless that was done: its arrays may change from now on."""
        if not self.is_own:
            self.frame, self.is_own = codec.Frame([self.frame.copy()], self.frame.nbytes), True

    @property
    def rows(self) -> int:
        """Return the number of transitions."""
        return self.last - self.first + 1 if self.field == CHUNK else 0

    @property
    def is_out(self) -> bool:
        """Whether a consumer may have it, now or before the broker forgot it."""
        return self.was_sent or self.confirmed > 0


class Held:
    """Copies of confirmed chunks, until it is known that the broker will not forget them.

    Thread-safe: the producer keeps and takes, another thread finds out and releases.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: deque[Sent] = deque()
        self._run = b""
        self.nbytes = 0

    def __len__(self) -> int:
        """Return the number of chunks that are held."""
        return len(self._chunks)

    def keep(self, chunk: Sent) -> None:
        """Keep a chunk that was confirmed now; its arrays may change from now on.

        It belongs to this object then.
        """
        size = chunk.frame.nbytes
        if size > HELD_MAX_BYTES:
            return self.clear()  # of what comes before it, a part is of no use
        chunk.own()
        with self._lock:
            while self.nbytes + size > HELD_MAX_BYTES:
                self.nbytes -= self._chunks.popleft().frame.nbytes
            chunk.was_sent, chunk.confirmed = False, time.monotonic()
            self._chunks.append(chunk)
            self.nbytes += size

    def meet(self, run: bytes) -> None:
        """Take note which run of the broker has what is held: maybe since now, from its disk."""
        with self._lock:
            if run != self._run:
                self._run = run
                for chunk in self._chunks:
                    chunk.confirmed = time.monotonic()

    def newest(self, run: bytes, before_s: float) -> int:
        """Return the last transition that this run had confirmed at a monotonic time; 0 if none."""
        with self._lock:
            known = self._chunks if run == self._run else ()
            old = itertools.takewhile(lambda chunk: chunk.confirmed <= before_s, known)
            return max((chunk.last for chunk in old), default=0)

    def release(self, run: bytes, number: int) -> None:
        """Drop what this run of the broker has safely, which ends with this transition."""
        with self._lock:
            while run == self._run and self._chunks and self._chunks[0].last <= number:
                self.nbytes -= self._chunks.popleft().frame.nbytes

    def take_after(self, number: int) -> list[Sent]:
        """Return the chunks with transitions after this one, oldest first, and keep the others."""
        with self._lock:
            taken = [chunk for chunk in self._chunks if chunk.last > number]
            self._chunks = deque(chunk for chunk in self._chunks if chunk.last <= number)
            self.nbytes = sum(chunk.frame.nbytes for chunk in self._chunks)
        return taken

    def clear(self) -> None:
        """Forget all: a new incarnation begins."""
        with self._lock:
            self._chunks.clear()
            self.nbytes = 0
