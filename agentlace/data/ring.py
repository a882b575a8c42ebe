"""A ring of rows that one thread writes while others read, none of them waiting for the other.

Rows are numbered from 0 for ever; row ``i`` is at position ``i % capacity``. A writer first
*claims* the rows that it is going to write, then writes them, then publishes them. A reader
reads without a lock and looks afterwards whether the rows that it read have been claimed
meanwhile: position by position, a row is whole if no row a lap ahead was claimed. Those that are
torn are drawn again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from agentlace import native
from agentlace.data.columns import Array, map_leaves
from agentlace.pool import Pool

Tree = TypeVar("Tree")

READ_ATTEMPTS = 8
"""So often torn rows are drawn again, before the reader makes the writer wait for it."""


LEAST_BYTES = 1 << 20
MAX_BYTES = 256 << 20
"""Leaves of batches of these sizes come into memory that is kept; not more than this of it, in all.

The C library keeps smaller ones by itself. Four batches of 256 transitions with two 128x128x3
cameras are 192 MiB: one in use, one being made, and two that are prefetched.
"""
WORKER_BYTES = 4 << 20
MAX_WORKERS = 4
"""A large batch is copied by several threads, each of which has so much to do, since one does not
copy as fast as the memory can; not by more, whatever the machine has: it has others to serve."""
batch_memory = Pool(LEAST_BYTES, MAX_BYTES)


class Head:
    """Where a ring is being written.

    Attributes:
        capacity: of the ring, in rows.
        first: number of the first row that ever was there.
        claimed: rows below this number have been written, or are just being written.
        written: rows below this number have been written.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.begin_at(0)

    def begin_at(self, first: int) -> None:
        """Number the next row ``first``, and have none before."""
        self.first = self.claimed = self.written = first

    def claim(self, n: int) -> int:
        """Announce that the next ``n`` rows will be written; return their first position."""
        self.claimed = self.written + n
        return self.written % self.capacity

    def commit(self) -> None:
        """Announce that the claimed rows are written."""
        self.written = self.claimed

    def rows(self) -> tuple[int, int]:
        """Return the rows that can be read: [begin, end). Any thread may ask."""
        end = self.written  # first, since what is claimed grows before
        return max(self.first, self.claimed - self.capacity), end

    def is_torn(self, rows: Array) -> Array:
        """Return which of the rows may have been overwritten since :meth:`rows` told them."""
        torn: Array = rows < self.claimed - self.capacity
        return torn


def blocks(n: int, capacity: int) -> Iterator[tuple[int, int]]:
    """Yield the parts [start, end) in which to write ``n`` rows, so that most can still be read."""
    size = max(1, capacity // 4)
    for start in range(0, n, size):
        yield start, min(start + size, n)


def take_rows(storage: Array, positions: Array) -> Array:
    """Return a copy of the rows at these positions (integers of any shape).

    The same as ``storage[positions]``, about twice as fast for short rows, and as fast as memory
    can be copied for large ones, since these come into memory that is used again.
    """
    return take_all(storage, positions)


def take_all(storages: Tree, positions: Array) -> Tree:
    """Return what :func:`take_rows` does for each array of a tree; the large ones at once."""
    large: list[tuple[Array, Array]] = []
    small_row = LEAST_BYTES // (positions.size or 1)

    def take(storage: Array) -> Array:
        if storage.strides[0] <= small_row or not _is_plain(storage, positions):
            return storage.take(positions, axis=0)
        rows = batch_memory.empty(positions.shape + storage.shape[1:], storage.dtype)
        large.append((storage, rows))
        return rows

    taken: Tree = map_leaves(take, storages)
    if large:
        _copy(large, positions)
    return taken


def _is_plain(storage: Array, positions: Array) -> bool:
    """Whether all positions are there, none of them counted from the end."""
    if not positions.size or positions.dtype.kind != "i" or not storage.flags.c_contiguous:
        return False
    return bool(positions.min() >= 0 and positions.max() < len(storage))


def _copy(pairs: list[tuple[Array, Array]], positions: Array) -> None:
    """Copy rows of the first array of each pair into the second; other threads run meanwhile."""
    if native.gather is None or len(pairs) > native.MAX_LEAVES:
        for storage, rows in pairs:
            # Without clipping numpy would write into a copy of `rows` first.
            storage.take(positions, axis=0, out=rows, mode="clip")
        return
    sources, targets = (
        [array.view(np.uint8) for array in part] for part in zip(*pairs, strict=True)
    )
    nbytes = sum(target.nbytes for target in targets)
    workers = min(MAX_WORKERS, _cores(), nbytes // WORKER_BYTES)
    native.gather(sources, targets, np.ascontiguousarray(positions, np.int64), workers)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def joined_rows(parts: Sequence[Array], axis: int = 0) -> Array:
    """Return a copy of arrays of one dtype, joined along an axis as ``np.concatenate`` does."""
    first = parts[0]
    length = sum(part.shape[axis] for part in parts)
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    joined = batch_memory.empty(shape, first.dtype)
    np.concatenate(parts, axis, out=joined)
    return joined


def write_rows(storage: Array, values: Array, at: int) -> None:
    """Write rows, of which there are at most as many as the storage has, from a position on."""
    head = min(len(values), len(storage) - at)
    storage[at : at + head] = values[:head]
    if head < len(values):
        storage[: len(values) - head] = values[head:]


def read_whole(
    size: int,
    draw: Callable[[int], Array],
    read: Callable[[Array], Tree],
    is_torn: Callable[[Array], Array],
    writing: Lock,
) -> Tree:
    """Return what ``read`` makes of drawn rows, without a torn one among them.

    Args:
        size: number of rows.
        draw: returns so many numbers of rows.
        read: returns a tree of arrays whose leading dimension counts the rows.
        is_torn: tells which of the rows may have been overwritten since they were drawn.
        writing: held by the writer while it writes; taken only when the writer is so fast that
            rows are torn again and again, and then only for those that are left.
    """
    rows = draw(size)
    batch = read(rows)
    torn = np.flatnonzero(is_torn(rows))
    for _ in range(READ_ATTEMPTS):
        if not len(torn):
            return batch
        rows = draw(len(torn))
        _replace(batch, torn, read(rows))
        torn = torn[is_torn(rows)]
    if len(torn):
        with writing:
            _replace(batch, torn, read(draw(len(torn))))
    return batch


def _replace(batch: Any, places: Array, rows: Any) -> None:
    def put(leaf: Array, values: Array) -> None:
        leaf[places] = values

    map_leaves(put, batch, rows)
