"""Trees with a stamp, again and again: the requests and replies of a control loop.

A stamped frame's tree is [stamp, tree]. The stamp is the first leaf's bytes: the sender's own
values (a request's number, its deadline), then the tree's numbers, each at a place that the
header tells: [mark, what, where]. So all trees of one structure have the same header, whatever
their numbers and arrays hold. Both ends work a structure out once; after that a message costs
its sender a look at each leaf and one join, and its receiver one look-up.

Whatever is of no structure that can be remembered goes the long way, as its own header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from agentlace.codec.dtypes import dtype_name
from agentlace.codec.frame import (
    LENGTHS,
    PREFIX_BYTES,
    WHOLE_CRC_BYTES,
    ZEROS,
    Frame,
    assemble,
    places_of,
    prefix_of,
)
from agentlace.codec.offender import find_offender
from agentlace.codec.tree import (
    MAX_FRAME_BYTES,
    MAX_NDIM,
    PACKED,
    REFER_BYTES,
    REFUSALS,
    Buffer,
    Column,
    Mark,
    TreeEncoder,
    raw_bytes,
)
from agentlace.errors import DecodeError, EncodeError

HEADER_BYTES = 64 << 10
"""A longer header is not remembered."""
MAX_NUMBERS = 256
"""Trees with more numbers outside of arrays go the long way."""
MAX_DEPTH = 16
MISSES = 16
"""After so many trees that were all of another structure, structures are no longer looked for."""

CODES = {bool: "?", int: "q", float: "d"}
"""How :mod:`struct` calls Python's own numbers; a numpy scalar's code is its dtype's name."""
_UINT8 = np.dtype(np.uint8)

Take = Callable[[Any, list[Any], list[Buffer]], None]
"""Appends a value's numbers and its arrays' bytes; raises _Other if it is of another structure."""


class _Other(Exception):
    """A tree is not of the structure, or of none that can be remembered."""


class StampedEncoder:
    """Encodes trees that are often of one structure. Not thread-safe.

    Args:
        kind: of the frames.
        meta: of the frames.
        stamp: format of the sender's own values, as :mod:`struct` has it, without a byte order.
    """

    def __init__(self, kind: str, meta: Mapping[str, Any], stamp: str) -> None:
        self._kind = kind
        self._meta = dict(meta)
        self._stamp = "<" + stamp
        self._structure: _Structure | None = None
        self._misses = 0

    def encode(self, stamp: tuple[Any, ...], tree: Any) -> Frame:
        """Encode a tree; as :func:`agentlace.codec.encode` does, it refers to large arrays.

        Raises:
            EncodeError: a value that may not travel, with its path; or a frame that is too large.
        """
        structure = self._structure
        if structure is not None:
            try:
                frame = structure.frame(stamp, tree)
                self._misses = 0
                return frame
            except (_Other, struct.error, *REFUSALS):
                self._structure = None
        if self._misses < MISSES:
            self._misses += 1
            try:
                self._structure = _Structure(self._kind, self._meta, self._stamp, tree)
                return self._structure.frame(stamp, tree)
            except (_Other, DecodeError, struct.error, *REFUSALS):
                self._structure = None
        return encode_stamped(self._kind, self._meta, struct.pack(self._stamp, *stamp), tree)


def encode_stamped(kind: str, meta: Mapping[str, Any], stamp: bytes, tree: Any) -> Frame:
    """Encode one tree, whose structure need not come again, with a stamp that is packed already.

    Raises:
        EncodeError: as :meth:`StampedEncoder.encode`.
    """
    encoder = TreeEncoder()
    try:
        packed = encoder.pack([np.frombuffer(stamp, np.uint8), tree])
    except REFUSALS as error:
        raise find_offender(tree) from error
    return assemble(_header(kind, meta, encoder, packed), encoder.buffers)


def _header(kind: str, meta: Mapping[str, Any], encoder: TreeEncoder, packed: bytes) -> bytes:
    try:
        header: bytes = msgpack.packb([kind, meta, encoder.leaves, packed])
    except REFUSALS as error:
        raise EncodeError("meta", str(error)) from error
    return header


class _Structure:
    """What the frames of one structure have in common."""

    def __init__(self, kind: str, meta: Mapping[str, Any], stamp: str, tree: Any) -> None:
        learner, encoder = _Learner(stamp), TreeEncoder()
        self._take, described = learner.learn(tree)
        self._numbers = struct.Struct(learner.format)
        own = Column(_UINT8, (self._numbers.size,), [])
        header = _header(kind, meta, encoder, encoder.pack([own, described]))
        if len(header) > HEADER_BYTES:
            raise _Other
        leaves = [[name, list(shape)] for name, shape in encoder.leaves]
        end = PREFIX_BYTES + len(header)
        pads = []
        for *_, offset, nbytes in places_of(leaves, end, MAX_FRAME_BYTES):
            pads.append(ZEROS[: offset - end])
            end = offset + nbytes
        self._nbytes = end
        self._is_whole = end <= WHOLE_CRC_BYTES
        start = LENGTHS.pack(len(header), end) + header
        if not self._is_whole:
            start = prefix_of(start, False) + start
        self._parts: list[Any] = [start + pads[0], b""]
        for pad in pads[1:]:
            self._parts += (pad, b"")

    def frame(self, stamp: tuple[Any, ...], tree: Any) -> Frame:
        """Return a tree's frame; raises _Other, struct.error or one of REFUSALS."""
        numbers, leaves = [*stamp], []  # type: ignore[var-annotated]
        self._take(tree, numbers, leaves)
        parts = self._parts.copy()
        parts[1] = self._numbers.pack(*numbers)
        parts[3::2] = leaves
        if self._is_whole:
            body = b"".join(parts)
            return Frame([prefix_of(body, True) + body], self._nbytes)
        return Frame([b"".join(parts[:3]), *parts[3:]], self._nbytes)


class _Learner:
    """Works out a tree's structure: how to take its values, and what its header says.

    Attributes:
        format: of the stamp, with the numbers that were found so far.
    """

    def __init__(self, stamp: str) -> None:
        self.format = stamp
        self._found = 0

    def learn(self, value: Any, depth: int = 0) -> tuple[Take, Any]:
        """Return how to take values like this one, and what stands for it in the header."""
        kind = type(value)
        if depth > MAX_DEPTH:
            raise _Other
        if kind is np.ndarray:
            _check_plain(value.dtype)
            if not value.nbytes or value.ndim > MAX_NDIM:
                raise _Other
            return _array_taker(value), Column(value.dtype, value.shape, [])
        if kind in CODES:
            return _number_taker(kind), self._number(CODES[kind], CODES[kind])
        if isinstance(value, np.generic):
            _check_plain(value.dtype)
            name = dtype_name(value.dtype)
            return _scalar_taker(kind), self._number(name, f"{value.dtype.itemsize}s")
        if kind is dict and all(type(key) is str for key in value):
            learnt = [self.learn(item, depth + 1) for item in value.values()]
            taker = _dict_taker([(key, take) for key, (take, _) in zip(value, learnt, strict=True)])
            return taker, {key: item for key, (_, item) in zip(value, learnt, strict=True)}
        if kind is list or kind is tuple:
            learnt = [self.learn(item, depth + 1) for item in value]
            return _items_taker(kind, [take for take, _ in learnt]), kind([i for _, i in learnt])
        if value is None or kind is str or kind is bytes or (kind is set and _are_texts(value)):
            return _constant_taker(value), value
        raise _Other

    def _number(self, what: Any, code: str) -> Any:
        self._found += 1
        if self._found > MAX_NUMBERS:
            raise _Other
        where, self.format = struct.calcsize(self.format), self.format + code
        return [PACKED[Mark.NUMBER], what, where]


def _check_plain(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biufc" or type(dtype_name(dtype)) is not str:
        raise _Other


def _are_texts(value: set[Any]) -> bool:
    return all(type(item) is str for item in value)


def _array_taker(like: np.ndarray[Any, Any]) -> Take:
    dtype, shape = like.dtype, like.shape
    copied = np.ndarray.tobytes if like.nbytes < REFER_BYTES else raw_bytes

    def take(value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
        if type(value) is not np.ndarray or value.shape != shape:
            raise _Other
        if value.dtype is not dtype and value.dtype != dtype:
            raise _Other
        leaves.append(copied(value))

    return take


def _number_taker(kind: type) -> Take:
    def take(value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
        if type(value) is not kind:
            raise _Other
        numbers.append(value)

    return take


def _scalar_taker(kind: Any) -> Take:
    def take(value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
        if type(value) is not kind:
            raise _Other
        numbers.append(value.tobytes())

    return take


def _constant_taker(constant: Any) -> Take:
    is_set = type(constant) is set
    constant = set(constant) if is_set else constant  # the caller's may change

    def take(value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
        if value is constant:
            return
        if type(value) is not type(constant) or value != constant:
            raise _Other
        if is_set and not _are_texts(value):
            raise _Other

    return take


def _dict_taker(items: list[tuple[str, Take]]) -> Take:
    def take(value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
        if type(value) is not dict or len(value) != len(items):
            raise _Other
        for (key, take_item), (found, item) in zip(items, value.items(), strict=True):
            if found is not key and (type(found) is not str or found != key):
                raise _Other
            take_item(item, numbers, leaves)

    return take


def _items_taker(kind: Any, takers: list[Take]) -> Take:
    def take(value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
        if type(value) is not kind or len(value) != len(takers):
            raise _Other
        for take_item, item in zip(takers, value, strict=True):
            take_item(item, numbers, leaves)

    return take
