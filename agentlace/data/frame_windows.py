"""Which frames each of a ring's transitions shows, and the frames themselves, each once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.data.frame_pool import FramePool, Shapes
from agentlace.data.ring import take_rows, write_rows

BLOCK_ROWS = 256
"""So many transitions are written at a time: new frames are stored before old ones are freed."""

Frames = Mapping[str, Array]
"""By camera."""


class FrameWindows:
    """Per row the slots of the ``history`` frames of its observation, and of one more, the next.

    Frames are recognised by their content: an observation that equals the next observation of
    the row before shares its frames. One thread writes.

    Args:
        capacity: in rows.
        shapes: of the frames by camera, and their dtypes.
        history: number of frames that an observation shows.
        stacked: whether observations come with all of them, as their first dimension.
        folder: see :class:`FramePool`.
    """

    def __init__(
        self, capacity: int, shapes: Shapes, history: int, stacked: bool, folder: Path | None
    ) -> None:
        self.capacity = capacity
        self.history = history
        self.stacked = stacked
        self._pool = FramePool(shapes, capacity + capacity // 4 + 2 * BLOCK_ROWS, folder)
        self._windows = np.zeros((capacity, history + 1), np.int32)
        self._newest: Array | None = None
        self._ended = True

    @property
    def nbytes(self) -> int:
        """Return the bytes of the frames in use, and of what refers to them."""
        return self._windows.nbytes + self._pool.used * self._pool.frame_nbytes

    def take(self, rows: Array) -> Array:
        """Return the slots that rows show: int32 of shape (n, history + 1), the oldest first."""
        return take_rows(self._windows, rows % self.capacity)

    def frames(self, slots: Array) -> dict[str, Array]:
        """Return the frames in slots of any shape, by camera; copies."""
        # Asked for after the slots: a pool that grew meanwhile has all that they refer to.
        return {camera: take_rows(array, slots) for camera, array in self._pool.arrays.items()}

    def export(self, rows: Array) -> dict[str, Any]:
        """Return the frames that rows show, each once, and which of these each row shows."""
        windows = self.take(rows)
        slots, shown = np.unique(windows, return_inverse=True)
        return {"frames": self.frames(slots), "shown": shown.reshape(windows.shape)}

    def absorb(self, exported: Mapping[str, Any], ends: Array) -> Array:
        """Store frames of exported rows; returns what :meth:`store` does."""
        shown, frames = exported["shown"], exported["frames"]
        now = {camera: take_rows(array, shown[:, :-1]) for camera, array in frames.items()}
        after = {camera: take_rows(array, shown[:, 1:]) for camera, array in frames.items()}
        stacked, self.stacked = self.stacked, True  # they know their history
        try:
            return self.store(now, after, ends)
        finally:
            self.stacked = stacked

    def write(self, windows: Array, at: int) -> None:
        """Write the slots that rows show, from a position on."""
        write_rows(self._windows, windows, at)

    def store(self, now: Frames, after: Frames, ends: Array) -> Array:
        """Store what is new among the frames of rows.

        Args:
            now: their observations' frames, of shape (n, ...) or, stacked, (n, history, ...).
            after: the same of their next observations.
            ends: which of them are the last of an episode.

        Returns:
            The slots that each row shows, int32 of shape (n, history + 1).
        """
        n = len(ends)
        shared = self._shared(now, after)
        slots = self._pool.take(n)
        for camera, frames in after.items():
            self._pool.arrays[camera][slots] = frames[:, -1] if self.stacked else frames
        windows = np.empty((n, self.history + 1), np.int32)
        for i in range(n):
            windows[i, -1] = slots[i]
            if self._newest is not None and shared[i] and (self.stacked or not self._ended):
                windows[i, :-1] = self._newest[1:]
            elif self._newest is not None and shared[i]:
                windows[i, :-1] = self._newest[-1]
            else:
                windows[i, :-1] = self._store_first({c: frames[i] for c, frames in now.items()})
            self._newest, self._ended = windows[i], bool(ends[i])
        self._newest = windows[-1].copy()
        return windows

    def _shared(self, now: Frames, after: Frames) -> Array:
        """Return which observations are the next observations of the transition before."""
        shared = np.ones(len(next(iter(now.values()))), np.bool_)
        for camera, frames in now.items():
            shared[1:] &= _rows_equal(frames[1:], after[camera][:-1])
            if self._newest is not None:
                before = self._pool.arrays[camera][self._newest[1:]]
                before = before if self.stacked else before[-1]
                shared[0] &= np.array_equal(frames[0], before)
        return shared

    def _store_first(self, frames: Frames) -> Array:
        """Store an observation that nothing came before; equal frames of its history once."""
        stacks = frames if self.stacked else {c: frame[None] for c, frame in frames.items()}
        count = self.history if self.stacked else 1
        new = np.ones(count, np.bool_)
        for i in range(1, count):
            new[i] = not all(np.array_equal(stack[i], stack[i - 1]) for stack in stacks.values())
        slots = self._pool.take(int(new.sum()))
        for camera, stack in stacks.items():
            self._pool.arrays[camera][slots] = stack[new]
        return take_rows(slots, np.cumsum(new) - 1)

    def give_back(self, first: int, end: int, written: int, following: Array) -> None:
        """Give back the frames that only the overwritten rows [first, end) have shown.

        A frame is shown by transitions that follow each other, so one that the first remaining
        transition does not show is shown by none.
        """
        if first == end:
            return
        if end < written:
            following = self._windows[end % self.capacity]
        gone = self._windows[np.arange(first, end) % self.capacity]
        self._pool.give_back(np.setdiff1d(gone, following))


def _rows_equal(some: Array, others: Array) -> Array:
    """Return which rows have the same content, bool of shape (n,)."""
    same_memory = some.__array_interface__["data"][0] == others.__array_interface__["data"][0]
    if same_memory and some.strides == others.strides and some.dtype == others.dtype:
        return np.ones(len(some), np.bool_)
    return np.fromiter(map(np.array_equal, some, others), np.bool_, len(some))
