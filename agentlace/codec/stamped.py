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
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import msgpack
import numpy as np

from agentlace import native
from agentlace.codec.dtypes import dtype_name
from agentlace.codec.frame import (
    LENGTHS,
    PREFIX_BYTES,
    PROTOCOL_VERSION,
    START,
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
NUMBER, SCALAR, ARRAY, DICT, ITEMS, CONSTANT = range(6)
"""Kinds of plans, here and at the receiving end; ``_native.c`` knows them by these numbers."""
_UINT8 = np.dtype(np.uint8)

Plan = tuple[Any, ...]
"""What a value is: the kind of plan, the value's type, and what that kind has beside them:

======== ======================================================================
NUMBER   nothing
SCALAR   size in bytes
ARRAY    dtype, shape, offset in the frame, size in bytes, how to get its bytes
DICT     (key, plan) of each item
ITEMS    the plan of each item
CONSTANT what it is equal to
======== ======================================================================
"""


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
            if structure.layout is not None and native.frame is not None:
                made = native.frame(structure.layout, stamp, tree)
                if made is not None:
                    self._misses = 0
                    return Frame([made], structure.nbytes)
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
    """What the frames of one structure have in common.

    Attributes:
        nbytes: of each frame.
        layout: what the compiled function needs to know; None without one, or for a large frame.
    """

    def __init__(self, kind: str, meta: Mapping[str, Any], stamp: str, tree: Any) -> None:
        learner, encoder = _Learner(stamp), TreeEncoder()
        plan, described = learner.learn(tree)
        self._numbers = struct.Struct(learner.format)
        own = Column(_UINT8, (self._numbers.size,), [])
        header = _header(kind, meta, encoder, encoder.pack([own, described]))
        if len(header) > HEADER_BYTES:
            raise _Other
        leaves = [[name, list(shape)] for name, shape in encoder.leaves]
        end = PREFIX_BYTES + len(header)
        pads, places = [], []
        for *_, offset, nbytes in places_of(leaves, end, MAX_FRAME_BYTES):
            pads.append(ZEROS[: offset - end])
            places.append((offset, nbytes))
            end = offset + nbytes
        self._plan = _placed(plan, iter(places[1:]))
        self.nbytes = end
        self._is_whole = end <= WHOLE_CRC_BYTES
        start = LENGTHS.pack(len(header), end) + header
        if not self._is_whole:
            start = prefix_of(start, False) + start
        self._parts: list[Any] = [start + pads[0], b""]
        for pad in pads[1:]:
            self._parts += (pad, b"")
        self.layout = self._layout(stamp[1:], places) if self._is_whole else None

    def _layout(self, stamp: str, places: list[tuple[int, int]]) -> tuple[Any, ...]:
        template = bytearray(self.nbytes)
        START.pack_into(template, 0, b"AL", PROTOCOL_VERSION, 1, 0)
        template[START.size : START.size + len(self._parts[0])] = self._parts[0]
        at, size = places[0]
        return bytes(template), at, at + size, stamp, self._plan

    def frame(self, stamp: tuple[Any, ...], tree: Any) -> Frame:
        """Return a tree's frame; raises _Other, struct.error or one of REFUSALS."""
        numbers: list[Any] = [*stamp]
        leaves: list[Any] = []
        _take(self._plan, tree, numbers, leaves)
        parts = self._parts.copy()
        parts[1] = self._numbers.pack(*numbers)
        if leaves:
            parts[3::2] = leaves
        if self._is_whole:
            body = b"".join(parts)
            return Frame([START.pack(b"AL", PROTOCOL_VERSION, 1, crc32(body)) + body], self.nbytes)
        return Frame([b"".join(parts[:3]), *parts[3:]], self.nbytes)


class _Learner:
    """Works out a tree's structure: how to take its values, and what its header says.

    Attributes:
        format: of the stamp, with the numbers that were found so far.
    """

    def __init__(self, stamp: str) -> None:
        self.format = stamp
        self._found = 0

    def learn(self, value: Any, depth: int = 0) -> tuple[Plan, Any]:
        """Return what values like this one are, and what stands for it in the header."""
        kind = type(value)
        if depth > MAX_DEPTH:
            raise _Other
        if kind is np.ndarray:
            _check_plain(value.dtype)
            if not value.nbytes or value.ndim > MAX_NDIM:
                raise _Other
            copied = np.ndarray.tobytes if value.nbytes < REFER_BYTES else raw_bytes
            array: Plan = (ARRAY, np.ndarray, value.dtype, value.shape, 0, 0, copied)
            return array, Column(value.dtype, value.shape, [])
        if kind in CODES:
            return (NUMBER, kind), self._number(CODES[kind], CODES[kind])
        if isinstance(value, np.generic):
            _check_plain(value.dtype)
            size = value.dtype.itemsize
            return (SCALAR, kind, size), self._number(dtype_name(value.dtype), f"{size}s")
        if kind is dict and all(type(key) is str for key in value):
            learnt = {key: self.learn(item, depth + 1) for key, item in value.items()}
            plan = (DICT, dict, tuple((key, inner) for key, (inner, _) in learnt.items()))
            return plan, {key: item for key, (_, item) in learnt.items()}
        if kind is list or kind is tuple:
            items = [self.learn(item, depth + 1) for item in value]
            return (ITEMS, kind, tuple(p for p, _ in items)), kind([item for _, item in items])
        if value is None or kind is str or kind is bytes or (kind is set and _are_texts(value)):
            constant = set(value) if kind is set else value  # the caller's may change
            return (CONSTANT, kind, constant), value
        raise _Other

    def _number(self, what: Any, code: str) -> Any:
        self._found += 1
        if self._found > MAX_NUMBERS:
            raise _Other
        where, self.format = struct.calcsize(self.format), self.format + code
        return [PACKED[Mark.NUMBER], what, where]


def _placed(plan: Plan, places: Iterator[tuple[int, int]]) -> Plan:
    """Return a plan whose arrays have their places."""
    kind = plan[0]
    if kind == ARRAY:
        return (*plan[:4], *next(places), plan[6])
    if kind == DICT:
        return (DICT, dict, tuple((key, _placed(inner, places)) for key, inner in plan[2]))
    if kind == ITEMS:
        return (ITEMS, plan[1], tuple(_placed(inner, places) for inner in plan[2]))
    return plan


def _check_plain(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biufc" or type(dtype_name(dtype)) is not str:
        raise _Other


def _are_texts(value: set[Any]) -> bool:
    return all(type(item) is str for item in value)


def _take(plan: Plan, value: Any, numbers: list[Any], leaves: list[Buffer]) -> None:
    """Append a value's numbers and its arrays' bytes; raises _Other if it is something else."""
    kind = plan[0]
    if type(value) is not plan[1]:
        raise _Other
    if kind == ARRAY:
        if value.shape != plan[3] or (value.dtype is not plan[2] and value.dtype != plan[2]):
            raise _Other
        leaves.append(plan[6](value))
    elif kind == DICT:
        items = plan[2]
        if len(value) != len(items):
            raise _Other
        for (key, inner), (found, item) in zip(items, value.items()):  # noqa: B905
            if found is not key and (type(found) is not str or found != key):
                raise _Other
            _take(inner, item, numbers, leaves)
    elif kind == NUMBER:
        numbers.append(value)
    elif kind == SCALAR:
        numbers.append(value.tobytes())
    elif kind == ITEMS:
        if len(value) != len(plan[2]):
            raise _Other
        for inner, item in zip(plan[2], value, strict=True):
            _take(inner, item, numbers, leaves)
    elif value != plan[2] or (plan[1] is set and not _are_texts(value)):
        raise _Other
