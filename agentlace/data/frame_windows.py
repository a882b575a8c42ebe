"""Which frames each of a ring's transitions shows, and the frames themselves, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.data.frame_pool import FramePool, Shapes
from agentlace.data.ring import take_all, take_rows, write_rows

BLOCK_ROWS = 256
"""So many transitions are written at a time: new frames are stored before old ones are freed."""

ACTORS_MAX = 64
"""Of more actors, those are forgotten whose newest row was overwritten."""

NONE = -1
"""Where there is no row."""

Frames = Mapping[str, Array]
"""By camera."""


class FrameWindows:
    """Per row the slots of the ``history`` frames of its observation, and of one more, the next.

    Frames are recognised by their content: an observation that equals the next observation of
    the same actor's row before shares its frames. One thread writes.

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
        self._newest: dict[Any, int] = {}  # the number of each actor's newest row
        self._before = np.full(capacity, NONE, np.int64)  # the number of its row before each
        self._ended = np.zeros(capacity, np.bool_)

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
        return take_all(self._pool.arrays, slots)

    def export(self, rows: Array) -> dict[str, Any]:
        """Return the frames that rows show, each once, and which of these each row shows."""
        windows = self.take(rows)
        slots, shown = np.unique(windows, return_inverse=True)
        return {"frames": self.frames(slots), "shown": shown.reshape(windows.shape)}

    def absorb(self, exported: Mapping[str, Any], rows: range) -> Array:
        """Store frames of exported rows; returns what :meth:`store` does.

        Args:
            exported: some rows of what :meth:`export` returned.
            rows: the numbers that they get; not empty.
        """
        used, shown = np.unique(exported["shown"], return_inverse=True)
        shown = shown.reshape(exported["shown"].shape)
        frames = {camera: take_rows(array, used) for camera, array in exported["frames"].items()}
        before = self._windows[(rows.start - 1) % self.capacity][1:]
        follows = rows.start > 0 and all(
            np.array_equal(array[shown[0, :-1]], self._pool.arrays[camera][before])
            for camera, array in frames.items()
        )
        new = np.ones(len(used), np.bool_)
        new[shown[0, :-1]] = not follows
        slots = np.empty(len(used), np.int32)
        slots[new] = self._pool.take(int(new.sum()))
        for camera, array in frames.items():
            self._pool.arrays[camera][slots[new]] = array[new]
        if follows:
            slots[shown[0, :-1]] = before
        return take_rows(slots, shown)

    def write(self, windows: Array, rows: range, lost: range) -> None:
        """Write the slots that rows show, in the place of those that they overwrite.

        Args:
            windows: int32 of shape (n, history + 1).
            rows: the numbers of the written ones.
            lost: the numbers of the overwritten ones.
        """
        self._pool.hold(windows)
        gone = take_rows(self._windows, np.arange(lost.start, lost.stop) % self.capacity)
        write_rows(self._windows, windows, rows.start % self.capacity)
        self._pool.release(gone)

    def store(self, now: Frames, after: Frames, ends: Array, row: int, actor: Any) -> Array:
        """Store what is new among the frames of rows.

        Args:
            now: their observations' frames, of shape (n, ...) or, stacked, (n, history, ...).
            after: the same of their next observations.
            ends: which of them are the last of an episode.
            row: number of the first of them.
            actor: whose they are.

        Returns:
            The slots that each row shows, int32 of shape (n, history + 1).
        """
        n = len(ends)
        before, ended = self._last_of(actor, row)
        shared = self._shared(now, after, before)
        slots = self._pool.take(n)
        for camera, frames in after.items():
            self._pool.arrays[camera][slots] = frames[:, -1] if self.stacked else frames
        windows = np.empty((n, self.history + 1), np.int32)
        for i in range(n):
            windows[i, -1] = slots[i]
            if before is not None and shared[i] and (self.stacked or not ended):
                windows[i, :-1] = before[1:]
            elif before is not None and shared[i]:
                windows[i, :-1] = before[-1]
            else:
                windows[i, :-1] = self._store_first({c: frames[i] for c, frames in now.items()})
            before, ended = windows[i], bool(ends[i])
        self._note(actor, row, ends)
        return windows

    def _last_of(self, actor: Any, row: int) -> tuple[Array | None, bool]:
        """Return what the actor's newest row shows, if it is there, and whether it was a last."""
        newest = self._newest.get(actor, NONE)
        if newest == NONE or newest < row - self.capacity:
            return None, True
        at = newest % self.capacity
        return self._windows[at].copy(), bool(self._ended[at])

    def _note(self, actor: Any, row: int, ends: Array) -> None:
        before = np.arange(row - 1, row - 1 + len(ends))
        before[0] = self._newest.get(actor, NONE)
        write_rows(self._before, before, row % self.capacity)
        write_rows(self._ended, ends, row % self.capacity)
        self._newest[actor] = row + len(ends) - 1
        if len(self._newest) > ACTORS_MAX:
            there = row + len(ends) - self.capacity
            self._newest = {name: at for name, at in self._newest.items() if at >= there}

    def newest(self, end: int) -> list[Any]:
        """Return (actor, number of its newest row below ``end``, whether it was a last) of all."""
        found = []
        there = max(self._newest.values(), default=NONE) - self.capacity
        for actor, row in self._newest.items():
            while row >= end:
                row = int(self._before[row % self.capacity]) if row > there else NONE
            if row != NONE:
                found.append([actor, row, bool(self._ended[row % self.capacity])])
        return found

    def go_on(self, newest: Sequence[Any]) -> None:
        """Go on where :meth:`newest` told that actors are."""
        for actor, row, ended in newest:
            self._newest[actor] = row
            self._ended[row % self.capacity] = ended

    def _shared(self, now: Frames, after: Frames, window: Array | None) -> Array:
        """Return which observations are the next observations of the transition before."""
        shared = np.ones(len(next(iter(now.values()))), np.bool_)
        for camera, frames in now.items():
            shared[1:] &= _rows_equal(frames[1:], after[camera][:-1])
            if window is not None:
                before = self._pool.arrays[camera][window[1:]]
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


def _rows_equal(some: Array, others: Array) -> Array:
    """Return which rows have the same content, bool of shape (n,)."""
    same_memory = some.__array_interface__["data"][0] == others.__array_interface__["data"][0]
    if same_memory and some.strides == others.strides and some.dtype == others.dtype:
        return np.ones(len(some), np.bool_)
    return np.fromiter(map(np.array_equal, some, others), np.bool_, len(some))
