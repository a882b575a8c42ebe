"""Large frames that several rows of a chunk refer to, stored once.

A leaf of large arrays is a :class:`Wide` until all of them are known. Then it becomes a column
of its own, or, if some of its rows are the same memory as others, a reference to common frames:
[their number, where its range of them begins, or which of them its rows are].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace.codec.tree import MAX_FRAME_BYTES, Buffer, Column, raw_bytes
from agentlace.errors import DecodeError

MAX_DEPTH = 100
"""Transitions that are nested deeper than this travel as rows."""
SHARE_BYTES = 512
"""Smaller frames are not worth the search for equal ones."""
GATHER_BYTES = 4096
"""From this size on rows are written from where they are, instead of being joined first."""

Array = np.ndarray[Any, Any]
Path = tuple[Any, ...]


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply function to the leaves of dicts and tuples, in their order."""
    if type(tree) is dict:
        return {key: map_leaves(value, function) for key, value in tree.items()}
    if type(tree) is tuple:
        return tuple(map_leaves(value, function) for value in tree)
    return function(tree)


def leaves(tree: Any, depth: int = 0) -> Iterator[Any]:
    """Return the leaves of a tree that came from outside."""
    if type(tree) not in (dict, tuple):
        yield tree
        return
    if depth >= MAX_DEPTH or not tree:
        raise DecodeError("a chunk's columns are empty or nested too deeply")
    for value in tree.values() if type(tree) is dict else tree:
        yield from leaves(value, depth + 1)


def joined(values: list[Any]) -> bytes:
    """Return the bytes of equal arrays or numpy scalars, one after the other."""
    if values[0].dtype.kind in "biufc":
        # They give their bytes to join; for scalars that is 30 times as fast as tobytes.
        with contextlib.suppress(BufferError, TypeError, ValueError):  # one is not contiguous
            return b"".join(values)
    return b"".join([value.tobytes() for value in values])


def column_of(values: list[Any]) -> Column:
    """Return equal arrays or scalars as one array, byte by byte (numpy would promote dtypes)."""
    first = values[0]
    if first.nbytes >= GATHER_BYTES:
        buffers: list[Buffer] = [raw_bytes(value) for value in values]
    else:
        buffers = [joined(values)]
    return Column(first.dtype, (len(values), *first.shape), buffers)


@dataclass
class Wide:
    """A leaf whose rows are large arrays, some of which may be the same as another leaf's."""

    path: Path
    values: list[Array]
    shared: list[Any] | None = None

    def column(self) -> Any:
        """Return what is encoded: the rows, or [number of the frames, which of them]."""
        return self.shared or column_of(self.values)


def share(wide: list[Wide]) -> list[Column]:
    """Store rows that are the same memory once; returns the frames that leaves then refer to.

    Only leaves of the same name, dtype and shape are compared (``observations/wrist`` with
    ``next_observations/wrist``). Frames are numbered row by row, so that the rows of an
    unbroken episode are a range of them, and its receiver gets views.
    """
    groups: dict[Any, list[Wide]] = {}
    for leaf in wide:
        first = leaf.values[0]
        groups.setdefault((leaf.path[1:], first.dtype, first.shape), []).append(leaf)
    frames: list[Column] = []
    for group in groups.values():
        rows = zip(*(leaf.values for leaf in group), strict=True)
        objects = {id(value): value for row in rows for value in row}
        places = _places(objects)
        unique = {places[key]: value for key, value in objects.items()}
        if len(unique) < sum(len(leaf.values) for leaf in group):
            numbers = dict(zip(unique, range(len(unique)), strict=True))
            for leaf in group:
                index = [numbers[places[id(value)]] for value in leaf.values]
                leaf.shared = [len(frames), _pack_index(index)]
            frames.append(column_of(list(unique.values())))
    return frames


def _places(objects: dict[int, Array]) -> dict[int, Any]:
    """Return what is the same for arrays of the same memory, by their identity."""
    if all(value.base is None for value in objects.values()):
        return {key: key for key in objects}
    return {key: (value.ctypes.data, value.strides) for key, value in objects.items()}


def _pack_index(index: list[int]) -> int | bytes:
    """Return where a range begins, or the bytes of whatever is not a range."""
    if index == list(range(index[0], index[0] + len(index))):
        return index[0]
    return np.array(index, "<i4").tobytes()


def join_shared(tree: Any, n: int) -> Any:
    """Undo :func:`share`: give every leaf its rows of the shared frames."""
    if type(tree) is not list:
        return tree
    try:
        columns, frames = tree
        if type(frames) is not list:
            raise DecodeError("a chunk's shared frames are not a list")
        numbered = dict(enumerate(frames))
        references = [leaf for leaf in leaves(columns) if type(leaf) is list]
        if sum(n * numbered[number][0].nbytes for number, _ in references) > MAX_FRAME_BYTES:
            raise DecodeError(f"a chunk's rows hold more than {MAX_FRAME_BYTES} bytes")
        return map_leaves(columns, lambda leaf: _pick(numbered, leaf, n))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise DecodeError(f"a chunk's rows cannot be put together: {error}") from error


def _pick(frames: dict[int, Array], leaf: Any, n: int) -> Any:
    """Return the n frames that a leaf refers to: a view if they are a range, else a copy."""
    if type(leaf) is not list:
        return leaf
    number, index = leaf
    rows = frames[number]
    if type(index) is int:
        wanted: Any = slice(index, index + n)
        first, last = index, index + n - 1
    else:
        wanted = np.frombuffer(index, "<i4")
        first, last = wanted.min(), wanted.max()
    if first < 0 or last >= len(rows):
        raise DecodeError("a chunk's row refers to a frame that is not there")
    return rows[wanted]
