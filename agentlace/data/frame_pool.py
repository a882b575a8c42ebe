"""Frames by slot, in memory or in mapped files; slots are given out, and taken back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.data.columns import Array

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


class FramePool:
    """One frame per slot and camera, kept as long as it is held. One thread writes.

    Memory is touched only by slots that were ever in use at the same time: those that were
    taken back last are given out first.

    Args:
        shapes: of the frames by camera, and their dtypes.
        slots: how many to begin with; it grows when that is not enough.
        folder: for mapped files, one per camera, which are overwritten; memory if None. The
            files need no room on the disk until they are written.

    Attributes:
        arrays: by camera, of shape (slots, ...). Replaced by longer ones when the pool grows.
    """

    def __init__(self, shapes: Shapes, slots: int, folder: Path | None = None) -> None:
        self._shapes = shapes
        self._folder = folder
        self._size = 0
        self._free = np.zeros(0, np.int32)
        self._free_count = 0
        self._holds = np.zeros(0, np.int32)
        self.arrays: dict[str, Array] = {}
        self._grow(slots)

    @property
    def used(self) -> int:
        """Return the number of slots that are given out."""
        return self._size - self._free_count

    @property
    def frame_nbytes(self) -> int:
        """Return the bytes of one slot, of all cameras together."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self._shapes.values()]
        return sum(sizes)

    def take(self, n: int) -> Array:
        """Return ``n`` slots that nobody uses, int32 of shape (n,); hold them next."""
        if n > self._free_count:
            self._grow(self._size + max(self._size // 2, n - self._free_count))
        self._free_count -= n
        slots: Array = self._free[self._free_count : self._free_count + n][::-1].copy()
        return slots

    def hold(self, slots: Array) -> None:
        """Hold slots, as often as they occur in this array."""
        np.add.at(self._holds, slots.ravel(), 1)

    def release(self, slots: Array) -> None:
        """Hold slots as much less; those that nobody holds any more are given out again."""
        np.subtract.at(self._holds, slots.ravel(), 1)
        unused = np.unique(slots)
        unused = unused[self._holds[unused] == 0]
        self._free[self._free_count : self._free_count + len(unused)] = unused
        self._free_count += len(unused)

    def _grow(self, size: int) -> None:
        arrays = {
            camera: self._allocate(camera, (size, *shape), dtype)
            for camera, (shape, dtype) in self._shapes.items()
        }
        if self._folder is None:
            for camera, array in self.arrays.items():
                arrays[camera][: self._size] = array
        self.arrays = arrays  # only now: samplers read them without a lock
        free = np.zeros(size, np.int32)
        free[: size - self._size] = np.arange(size - 1, self._size - 1, -1)
        free[size - self._size : size - self._size + self._free_count] = self._free[
            : self._free_count
        ]
        self._free, self._free_count = free, self._free_count + size - self._size
        self._holds = np.concatenate([self._holds, np.zeros(size - self._size, np.int32)])
        self._size = size

    def _allocate(self, camera: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if self._folder is None:
            return np.zeros(shape, dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{camera.replace('/', '.')}.frames"
        with open(path, "r+b" if self._size else "w+b") as file:
            os.truncate(file.fileno(), math.prod(shape) * dtype.itemsize)
        return np.asarray(np.memmap(path, dtype, "r+", shape=shape))
