"""Memory of large replies that nothing refers to any more, to be used again."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np

LEAST_BYTES = 128 << 10
MAX_BYTES = 64 << 20
"""Replies of these sizes come into memory that is kept; not more than this of it, in all."""


def _references(items: list[Any], number: int) -> int:
    return sys.getrefcount(items[number])


_UNUSED = _references([object()], 0)
"""References to something that only a list has."""
_CAN_COUNT = getattr(sys, "_is_gil_enabled", lambda: True)()


class Pool:
    """Memory of large replies that nothing refers to any more, to be used again.

    Memory that the system gives anew costs a page fault for every 4 KiB of it, which takes about
    as long as copying them. Whether an array still refers to it is told by its references.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Keep nothing; in a child process, where another thread may have held the lock."""
        self._lock = threading.Lock()
        self._kept: list[np.ndarray[Any, Any]] = []

    def memory(self, size: int) -> np.ndarray[Any, Any]:
        """Return writable memory of so many bytes that nothing else refers to."""
        if not (_CAN_COUNT and LEAST_BYTES <= size <= MAX_BYTES):
            return np.empty(size, np.uint8)
        with self._lock:
            for number in range(len(self._kept)):
                fits = size <= self._kept[number].size <= 2 * size
                if fits and _references(self._kept, number) == _UNUSED:
                    self._kept.append(self._kept.pop(number))
                    return self._kept[-1][:size]
            self._kept.append(np.empty(size, np.uint8))
            while sum(kept.size for kept in self._kept) > MAX_BYTES:
                self._kept.pop(0)
            return self._kept[-1][:]


_pool = Pool()
memory = _pool.memory
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.reset)
