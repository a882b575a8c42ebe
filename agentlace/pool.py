"""Memory of large arrays that nothing refers to any more, to be used again."""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _references(items: list[Any], number: int) -> int:
    return sys.getrefcount(items[number])


_UNUSED = _references([object()], 0)
"""References to something that only a list has."""
_CAN_COUNT = getattr(sys, "_is_gil_enabled", lambda: True)()


class Pool:
    """Memory of large arrays that nothing refers to any more, to be used again.

    Memory that the system gives anew costs a page fault for every 4 KiB of it, or must be zeroed
    in pages of 2 MiB, either of which takes longer than copying as much. Whether an array still
    refers to it is told by its references: arrays, views of them, and whatever else keeps one of
    these alive, such as a JAX array that was made of it without a copy. Thread-safe.

    Args:
        least_bytes: smaller arrays are left to numpy.
        max_bytes: so much is kept, in use or not; larger arrays are left to numpy.
    """

    def __init__(self, least_bytes: int, max_bytes: int) -> None:
        self.least_bytes = least_bytes
        self.max_bytes = max_bytes
        self.reset()
        _pools.add(self)

    def reset(self) -> None:
        """Keep nothing; in a child process, where another thread may have held the lock."""
        self._lock = threading.Lock()
        self._kept: list[Array] = []

    def memory(self, size: int) -> Array:
        """Return writable memory that nothing else refers to, uint8 of shape (size,)."""
        if not (_CAN_COUNT and self.least_bytes <= size <= self.max_bytes):
            return np.empty(size, np.uint8)
        with self._lock:
            for number in range(len(self._kept)):
                fits = size <= self._kept[number].size <= 2 * size
                if fits and _references(self._kept, number) == _UNUSED:
                    self._kept.append(self._kept.pop(number))
                    return self._kept[-1][:size]
            self._kept.append(np.empty(size, np.uint8))
            while sum(kept.size for kept in self._kept) > self.max_bytes:
                self._kept.pop(0)
            return self._kept[-1][:]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a writable array that nothing else refers to, with any content.

        Args:
            shape: of the array, which is contiguous.
            dtype: of the array; not of objects.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < self.least_bytes:
            return np.empty(shape, dtype)
        return self.memory(nbytes).view(dtype).reshape(shape)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _reset_all() -> None:
    for pool in list(_pools):
        pool.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
