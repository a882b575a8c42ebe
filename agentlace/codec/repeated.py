"""Chunks of one structure, one after the other: what they have in common is worked out once.

An actor sends rows of the same keys, dtypes and shapes for as long as it lives. The encoder
remembers that structure, so that a row costs a look at each leaf and a copy of its bytes; the
decoder remembers the headers that it has decoded, and takes the arrays from where those said.
Whatever differs goes the long way (:mod:`agentlace.codec.chunk`), and so do several rows with
large leaves, and one row two of whose large leaves are the same: there frames are shared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

from agentlace.codec.chunk import KIND, Chunk, check_size, decode_chunk, encode_chunk
from agentlace.codec.frame import Frame, assemble, checked_header
from agentlace.codec.shared import SHARE_BYTES, Array, joined
from agentlace.codec.tree import (
    MAX_NDIM,
    REFUSALS,
    Buffer,
    Column,
    TreeEncoder,
    raw_bytes,
    unpack,
)
from agentlace.errors import EncodeError

HEADERS = 64
"""So many headers are remembered at each end."""
HEADER_BYTES = 16 << 10
"""A longer one is not."""
MAX_DEPTH = 16
MISSES = 16
"""After so many chunks that were all of another structure, structures are no longer looked for."""

_PYTHON_CODES = {bool: "?", int: "q", float: "d"}
_PYTHON_DTYPES = {bool: np.dtype("|b1"), int: np.dtype("<i8"), float: np.dtype("<f8")}


class _Leaf(NamedTuple):
    """What all values of a leaf are; ``code`` is how :mod:`struct` calls Python's own."""

    kind: type
    code: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_wide: bool = False


Structure = Any
"""A transition's dicts and tuples, with a _Leaf for each leaf."""


class _Other(Exception):
    """A row is not of the structure, or of none that can be remembered."""


class ChunkEncoder:
    """Encodes the chunks of one actor. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._structure: Structure = None
        self._is_wide = False
        self._misses = 0
        self._meta = b""
        self._headers: dict[int, bytes] = {}

    def encode(self, rows: list[Any], meta: Mapping[str, Any]) -> Frame:
        """Encode transitions, as :func:`agentlace.codec.encode_chunk` does.

        Raises:
            EncodeError: a value that may not travel; the path starts inside the transition.
        """
        if self._structure is not None and (len(rows) == 1 or (rows and not self._is_wide)):
            buffers: list[list[Buffer]] = []
            wide: list[Array] = []
            try:
                _gather(self._structure, rows, buffers, wide)
                if not _are_apart(wide):
                    return encode_chunk(rows, meta)
                frame = assemble(self._header(len(rows), meta), buffers)
                self._misses = 0
                return frame
            except (_Other, KeyError, struct.error, EncodeError, *REFUSALS):
                self._structure = None
        frame = encode_chunk(rows, meta)
        if self._structure is not None:
            return frame
        if self._misses < MISSES and rows:
            self._misses += 1
            self._learn(rows[0])
        return frame

    def _learn(self, row: Any) -> None:
        self._headers = {}
        try:
            self._structure = _structure_of(row)
            self._is_wide = any(leaf.is_wide for leaf in _leaves(self._structure))
        except _Other:
            self._structure = None

    def _header(self, n: int, meta: Mapping[str, Any]) -> bytes:
        packed: bytes = msgpack.packb(dict(meta))
        if packed != self._meta or len(self._headers) >= HEADERS:
            self._meta, self._headers = packed, {}
        header = self._headers.get(n)
        if header is None:
            header = self._headers[n] = self._made_header(n, meta)
        return header

    def _made_header(self, n: int, meta: Mapping[str, Any]) -> bytes:
        """Return the header that the long way would give to n rows."""
        encoder, kinds = TreeEncoder(), "".join(map(_kind_of, _leaves(self._structure)))
        check_size(n, kinds)
        tree = _mapped(self._structure, lambda leaf: Column(leaf.dtype, (n, *leaf.shape), []))
        packed = encoder.pack(tree)
        described = {"n": n, "kinds": kinds, "meta": dict(meta)}
        header: bytes = msgpack.packb([KIND, described, encoder.leaves, packed])
        return header


def _structure_of(value: Any, depth: int = 0) -> Structure:
    """Return the structure of a row; raises _Other if it is none to be remembered."""
    kind = type(value)
    if kind is dict or kind is tuple:
        if not value or depth == MAX_DEPTH:
            raise _Other
        if kind is tuple:
            return tuple(_structure_of(item, depth + 1) for item in value)
        return {key: _structure_of(item, depth + 1) for key, item in value.items()}
    if kind in _PYTHON_CODES:
        return _Leaf(kind, _PYTHON_CODES[kind], _PYTHON_DTYPES[kind], ())
    if kind is not np.ndarray and not isinstance(value, np.generic):
        raise _Other
    if value.dtype.kind not in "biufc" or value.ndim >= MAX_NDIM:
        raise _Other
    return _Leaf(kind, "", value.dtype, value.shape, value.nbytes >= SHARE_BYTES)


def _kind_of(leaf: _Leaf) -> str:
    return "p" if leaf.code else "a" if leaf.kind is np.ndarray else "s"


def _leaves(structure: Structure) -> Iterator[_Leaf]:
    if type(structure) is _Leaf:
        yield structure
        return
    for item in structure.values() if type(structure) is dict else structure:
        yield from _leaves(item)


def _mapped(structure: Structure, function: Any) -> Any:
    """Return the same dicts and tuples, with something else for each leaf."""
    if type(structure) is dict:
        return {key: _mapped(item, function) for key, item in structure.items()}
    if type(structure) is tuple:
        return tuple(_mapped(item, function) for item in structure)
    return function(structure)


def _gather(
    structure: Structure, values: list[Any], out: list[list[Buffer]], wide: list[Array]
) -> None:
    """Append each leaf's bytes, and the large arrays; raises if a value differs.

    What it raises is _Other, KeyError or struct.error.
    """
    if type(structure) is _Leaf:
        out.append([_bytes_of(structure, values)])
        if structure.is_wide:
            wide += values
    elif type(structure) is dict:
        size = len(structure)
        for value in values:
            if type(value) is not dict or len(value) != size:
                raise _Other
        for key, item in structure.items():
            _gather(item, [value[key] for value in values], out, wide)
    else:
        size = len(structure)
        for value in values:
            if type(value) is not tuple or len(value) != size:
                raise _Other
        for i, item in enumerate(structure):
            _gather(item, [value[i] for value in values], out, wide)


def _bytes_of(leaf: _Leaf, values: list[Any]) -> Buffer:
    kind: Any = leaf.kind
    code, dtype, shape = leaf.code, leaf.dtype, leaf.shape
    if kind is not np.ndarray:
        if {*map(type, values)} != {kind}:
            raise _Other
        return struct.pack(f"<{len(values)}{code}", *values) if code else joined(values)
    for value in values:
        if type(value) is not kind or value.dtype != dtype or value.shape != shape:
            raise _Other
    return raw_bytes(values[0]) if leaf.is_wide else joined(values)


def _are_apart(wide: list[Array]) -> bool:
    """Tell whether no two arrays begin at the same memory; else it is to be stored once."""
    if all(array.base is None for array in wide):
        return len({*map(id, wide)}) == len(wide)
    return len({array.ctypes.data for array in wide}) == len(wide)


class _Known(NamedTuple):
    """What a header says: the chunk's, and where in a frame of so many bytes each array is."""

    n: int
    nbytes: int
    places: Structure
    kinds: str
    meta: bytes


class _Place(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


class ChunkDecoder:
    """Decodes the chunks of one store. Not thread-safe: it belongs to its consumer's thread."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}

    def decode(self, data: Buffer) -> Chunk:
        """Decode what :class:`ChunkEncoder` or :func:`agentlace.codec.encode_chunk` made.

        Raises:
            DecodeError: not a whole, valid chunk.
        """
        view = memoryview(data)
        header = bytes(checked_header(view))
        known = self._known.get(header)
        if known is None or known.nbytes != len(view):
            if view.readonly:
                view = memoryview(bytearray(view))
            chunk = decode_chunk(view)
            self._learn(header, view, chunk)
            return chunk
        memory = np.frombuffer(bytearray(view) if view.readonly else view, np.uint8)
        columns = _mapped_places(known.places, memory)
        return Chunk(known.n, columns, unpack(known.meta), known.kinds)

    def _learn(self, header: bytes, view: memoryview, chunk: Chunk) -> None:
        """Remember a header whose arrays all are views of its frame."""
        if chunk.columns is None or len(header) > HEADER_BYTES:
            return
        base = np.frombuffer(view, np.uint8).ctypes.data
        try:
            places = _places_of(chunk.columns, base, len(view))
        except _Other:
            return
        if len(self._known) >= HEADERS:
            self._known.clear()
        meta: bytes = msgpack.packb(chunk.meta)
        self._known[header] = _Known(chunk.n, len(view), places, chunk.kinds, meta)


def _places_of(columns: Any, base: int, nbytes: int) -> Structure:
    if type(columns) is dict:
        return {key: _places_of(item, base, nbytes) for key, item in columns.items()}
    if type(columns) is tuple:
        return tuple(_places_of(item, base, nbytes) for item in columns)
    offset = columns.ctypes.data - base
    is_view = columns.nbytes and columns.flags.c_contiguous
    if not is_view or not 0 <= offset <= nbytes - columns.nbytes:
        raise _Other  # rows of shared frames that are no range of them are a copy
    return _Place(columns.shape, columns.dtype, offset)


def _mapped_places(places: Structure, memory: np.ndarray[Any, Any]) -> Any:
    if type(places) is dict:
        return {key: _mapped_places(item, memory) for key, item in places.items()}
    if type(places) is _Place:
        return np.ndarray(places.shape, places.dtype, memory, places.offset)
    return tuple(_mapped_places(item, memory) for item in places)
