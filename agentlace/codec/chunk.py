"""n transitions ⇄ one frame.

Transitions of one structure travel as columns: one array per leaf with a leading dimension n.
Equal frames are stored once: where ``next_observations`` of one row *is* ``observations`` of
the next (the same array, or the same memory), a chunk holds n + 1 frames instead of 2 n, and
which of them each row refers to. Whatever has no common structure (strings, ragged dicts)
travels as a list of rows in the same kind of frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentlace.codec.frame import Frame, decode, encode
from agentlace.codec.shared import (
    MAX_DEPTH,
    SHARE_BYTES,
    Array,
    Path,
    Wide,
    column_of,
    join_shared,
    leaves,
    map_leaves,
    share,
)
from agentlace.codec.tree import MAX_FRAME_BYTES, MAX_NDIM
from agentlace.errors import DecodeError, EncodeError

KIND = "chunk"
MAX_OBJECTS = 1 << 20
"""A chunk in columns has no more values and rows. Whoever reads its rows gets an object for each,
of a hundred bytes and more, and columns without bytes would be millions of them for nothing."""
_PYTHON_DTYPES = {bool: np.dtype("|b1"), int: np.dtype("<i8"), float: np.dtype("<f8")}
_PLAIN_DTYPES = frozenset(_PYTHON_DTYPES.values())
_FITS: dict[str, Callable[[Array], bool]] = {
    "a": lambda column: True,
    "s": lambda column: column.ndim == 1 and column.dtype.kind not in "SU",
    "p": lambda column: column.ndim == 1 and column.dtype in _PLAIN_DTYPES,
}
"""What the rows of a column were (arrays, numpy scalars, Python's), and what it then looks like."""


class _Ragged(Exception):
    """The rows have no common structure."""


@dataclass
class Chunk:
    """Consecutive transitions of one actor.

    Attributes:
        n: number of transitions.
        columns: tree of arrays with leading dimension n, None if the rows have no common
            structure. The arrays are writable; frames that rows share are the same memory.
        meta: plain values that the producer added.
        kinds: per column, what its rows were: array, numpy scalar, Python's.
    """

    n: int
    columns: Any | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    kinds: str = ""
    _rows: list[Any] | None = None

    def rows(self) -> list[Any]:
        """Return the transitions one by one, of the types in which they were inserted."""
        if self._rows is not None:
            return self._rows
        return _rows(self.columns, self.n, iter(self.kinds))

    def tail(self, skip: int) -> Chunk:
        """Return the chunk without its first ``skip`` transitions."""
        skip = min(skip, self.n)
        rows = None if self._rows is None else self._rows[skip:]
        columns = None if self.columns is None else map_leaves(self.columns, lambda a: a[skip:])
        return Chunk(self.n - skip, columns, self.meta, self.kinds, rows)


def _rows(tree: Any, n: int, kinds: Iterator[str]) -> list[Any]:
    """Turn a tree of columns into n trees."""
    if type(tree) is dict:
        columns = [_rows(column, n, kinds) for column in tree.values()]
        return [dict(zip(tree, row, strict=True)) for row in zip(*columns, strict=True)]
    if type(tree) is tuple:
        return list(zip(*[_rows(column, n, kinds) for column in tree], strict=True))
    kind = next(kinds)
    if kind == "p":
        values: list[Any] = tree.tolist()
        return values
    if kind == "s" or tree.ndim > 1:
        return list(tree)
    return [tree[i, ...] for i in range(n)]


def encode_chunk(rows: Sequence[Any], meta: Mapping[str, Any] | None = None) -> Frame:
    """Encode transitions, as columns if they have a common structure.

    Raises:
        EncodeError: a value that may not travel; the path starts inside the transition.
    """
    rows = rows if isinstance(rows, list) else list(rows)
    try:
        tree, kinds = _columns(rows)
    except _Ragged:
        tree, kinds = rows, None
    check_size(len(rows), kinds or "")
    header = {"n": len(rows), "kinds": kinds, "meta": dict(meta or {})}
    try:
        return encode(tree, KIND, header)
    except EncodeError:
        for row in rows:
            encode(row)  # raises with a path inside the transition
        raise


def check_size(n: int, kinds: str) -> None:
    """Raise EncodeError for more rows and leaves than travel in one chunk."""
    if n * (len(kinds) + 1) > MAX_OBJECTS and n > 1:
        raise EncodeError("", f"{n} rows of {len(kinds)} leaves are too many for one chunk")


def decode_chunk(data: bytes | bytearray | memoryview) -> Chunk:
    """Decode what :func:`encode_chunk` made.

    Raises:
        DecodeError: not a whole, valid chunk.
    """
    _, header, tree = decode(data, KIND)
    n, kinds, meta = (header.get(key) for key in ("n", "kinds", "meta"))
    if type(n) is not int or type(meta) is not dict:
        raise DecodeError("a chunk without a count or meta")
    if kinds is None:
        if type(tree) is not list or len(tree) != n:
            raise DecodeError("a chunk's rows do not match its count")
        return Chunk(n, None, meta, _rows=tree)
    columns = join_shared(tree, n)
    _check_columns(list(leaves(columns)), n, kinds)
    return Chunk(n, columns, meta, kinds)


def _check_columns(columns: list[Any], n: int, kinds: Any) -> None:
    if type(kinds) is not str or len(kinds) != len(columns):
        raise DecodeError("a chunk's columns do not match their kinds")
    if n * (len(columns) + 1) > MAX_OBJECTS and n > 1:
        raise DecodeError(f"a chunk of {n} rows of {len(columns)} leaves is too large")
    for column, kind in zip(columns, kinds, strict=True):
        if type(column) is not np.ndarray or column.shape[:1] != (n,):
            raise DecodeError("a chunk's columns do not match its count")
        if kind not in _FITS or not _FITS[kind](column):
            raise DecodeError(f"a chunk's column of {column.dtype} is not of kind {kind!r}")


def _columns(rows: list[Any]) -> tuple[Any, str]:
    """Return the rows' columns and, per leaf, what its rows were (array, scalar, Python)."""
    if not rows:
        raise _Ragged
    kinds: list[str] = []
    wide: list[Wide] = []
    tree = _collect(rows, (), kinds, wide)
    if len(rows) * sum(leaf.values[0].nbytes for leaf in wide) > MAX_FRAME_BYTES:
        raise EncodeError("", f"{len(rows)} rows hold more than {MAX_FRAME_BYTES} bytes")
    frames = share(wide)
    if wide:
        tree = map_leaves(tree, lambda leaf: leaf.column() if isinstance(leaf, Wide) else leaf)
    return ([tree, frames] if frames else tree), "".join(kinds)


def _collect(values: list[Any], path: Path, kinds: list[str], wide: list[Wide]) -> Any:
    """Turn a list of equal trees into a tree of columns.

    Raises:
        _Ragged: they are not equal in structure, or a leaf is neither array nor number.
    """
    first = values[0]
    kind = type(first)
    if kind not in (dict, tuple):
        return _leaf(values, kind, path, kinds, wide)
    sizes = set(map(len, values)) if set(map(type, values)) == {kind} else set()
    if sizes != {len(first)} or not first or len(path) >= MAX_DEPTH:
        raise _Ragged
    if kind is tuple:
        items = enumerate(zip(*values, strict=True))
        return tuple(_collect(list(item), (*path, i), kinds, wide) for i, item in items)
    try:
        columns = [(key, [value[key] for value in values]) for key in first]
    except KeyError as error:
        raise _Ragged from error
    return {key: _collect(column, (*path, key), kinds, wide) for key, column in columns}


def _leaf(values: list[Any], kind: type, path: Path, kinds: list[str], wide: list[Wide]) -> Any:
    first = values[0]
    if set(map(type, values)) != {kind}:
        raise _Ragged
    if kind in _PYTHON_DTYPES:
        kinds.append("p")
        return _python_column(values, _PYTHON_DTYPES[kind])
    if kind is not np.ndarray and not isinstance(first, np.generic):
        raise _Ragged
    dtype, shape = first.dtype, first.shape
    if [value for value in values if value.dtype != dtype or value.shape != shape]:
        raise _Ragged
    if dtype.hasobject or len(shape) >= MAX_NDIM or (kind is not np.ndarray and dtype.kind in "SU"):
        raise _Ragged
    kinds.append("a" if kind is np.ndarray else "s")
    if first.nbytes < SHARE_BYTES:
        return column_of(values)
    wide.append(Wide(path, values))
    return wide[-1]


def _python_column(values: list[Any], dtype: np.dtype[Any]) -> Array:
    try:
        return np.array(values, dtype)
    except OverflowError as error:
        raise _Ragged from error
