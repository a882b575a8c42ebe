"""The receiving end of :mod:`agentlace.codec.stamped`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from agentlace import native
from agentlace.codec.dtypes import dtype_of
from agentlace.codec.frame import (
    CRC_AT,
    CRC_END,
    DAMAGE,
    PREFIX_BYTES,
    WHOLE_CRC_BYTES,
    checked_header,
    damaged,
    opened,
    places_of,
)
from agentlace.codec.stamped import (
    ARRAY,
    CODES,
    CONSTANT,
    DICT,
    HEADER_BYTES,
    ITEMS,
    NUMBER,
    SCALAR,
)
from agentlace.codec.tree import Buffer, Mark, TreeDecoder, decode_scalar, unpack
from agentlace.errors import DecodeError, MissingExtra

KNOWN_BYTES = 1 << 20
"""Headers of so many bytes in all are remembered."""

_CRC_AND_LENGTH = struct.Struct("<II")
_PLANNED = frozenset({Mark.TUPLE, Mark.SET, Mark.NUMBER})
_CONSTANTS = frozenset({type(None), bool, int, float, str, bytes})

Array = np.ndarray[Any, Any]
Plan = tuple[Any, ...]
"""What to make a value of: the kind of plan, and what that kind has beside it:

======== ========================================================
NUMBER   which of the stamp's values
SCALAR   which of the stamp's values, and what makes a scalar of it
ARRAY    dtype, shape, offset in the frame
DICT     (key, plan) of each item
ITEMS    list or tuple, the plan of each item
CONSTANT the value; of a set a copy
======== ========================================================
"""


class _Other(Exception):
    """A header is of no structure that can be remembered."""


Stamped = tuple[Any, tuple[Any, ...], Any]
"""What a frame's meta means, its stamp (which begins with the sender's own values), its tree."""


class _Known(NamedTuple):
    """What lengths and header say of a frame.

    Attributes:
        start: what is before them: with the checksum, if it is of no more than they are.
        format: of the stamp, with the tree's numbers, without a byte order; ``values`` of them.
        where: its offset in the frame.
    """

    nbytes: int
    start: bytes
    about: Any
    format: str
    values: int
    where: int
    has_arrays: bool
    plan: Plan
    stamp: struct.Struct


class StampedDecoder:
    """Decodes what a :class:`StampedEncoder` made. Not thread-safe.

    Args:
        kind: of the frames.
        stamp: format of the sender's own values, as the encoder's.
        about: returns what a frame's meta means, once per header; may raise DecodeError.
    """

    def __init__(self, kind: str, stamp: str, about: Callable[[Mapping[str, Any]], Any]) -> None:
        self._kind = kind
        self._stamp = struct.Struct("<" + stamp)
        self._about = about
        self._known: dict[bytes, _Known] = {}
        self._left = KNOWN_BYTES

    def decode(self, data: Buffer) -> Stamped:
        """Decode one whole frame; its arrays are writable.

        Raises:
            DecodeError: truncated, damaged, of another kind, or without a stamp.
            MissingExtra: it holds a value of a library that is not installed here.
        """
        if native.opened is not None:
            return native.opened(self._known, data) or self._decode(data)
        if len(data) < PREFIX_BYTES:
            raise DecodeError(f"a frame of {len(data)} bytes is truncated")
        crc, header_bytes = _CRC_AND_LENGTH.unpack_from(data, CRC_AT)
        if header_bytes > HEADER_BYTES:
            return self._decode(data)
        known = self._known.get(bytes(data[CRC_END : PREFIX_BYTES + header_bytes]))
        if known is None:
            return self._decode(data)
        nbytes, start, about, _, _, where, has_arrays, plan, stamp = known
        view = memoryview(data)
        # What was remembered has passed every check: only what may differ is looked at.
        sound = view[: len(start)] == start and nbytes == len(view)
        if not sound or (len(start) < CRC_END and zlib.crc32(view[CRC_END:]) != crc):
            return self._decode(data)
        values, memory = stamp.unpack_from(data, where), None
        if has_arrays:
            memory = np.frombuffer(bytearray(data) if view.readonly else data, np.uint8)
        return about, values, _built(plan, memory, values)

    def _decode(self, data: Buffer) -> Stamped:
        view = memoryview(data)
        header = bytes(checked_header(view))
        try:
            message = opened(view, header, self._kind, _NumbersDecoder)
            if type(message.tree) is not list or len(message.tree) != 2:
                raise DecodeError("a frame without a stamp")
            own, tree = message.tree
            values = self._stamp.unpack_from(_stamp_of([own]))
            about = self._about(message.meta)
            self._learn(view, header, about)
        except DecodeError:
            raise
        except (struct.error, *DAMAGE) as error:
            raise damaged(error) from error
        return about, values, tree

    def _learn(self, view: memoryview, header: bytes, about: Any) -> None:
        if len(header) > HEADER_BYTES:
            return
        leaves, packed = unpack(header)[2:4]
        found = places_of(leaves, PREFIX_BYTES + len(header), len(view))
        places = [_Place(*place[:3]) for place in found]
        planner = _Planner(places, self._stamp)
        try:
            own, plan = planner.unpack(packed)
            if own is not places[0]:
                raise _Other
            plan = _checked_plan(plan)
        except _Other:
            return
        self._left -= len(header)
        if self._left < 0:
            self._known.clear()
            self._left = KNOWN_BYTES - len(header)
        start = bytes(view[: CRC_AT if len(view) <= WHOLE_CRC_BYTES else CRC_END])
        known = bytes(view[CRC_END : PREFIX_BYTES + len(header)])
        self._known[known] = _Known(
            *(len(view), start, about, planner.format[1:], planner.count, own.offset),
            *(len(places) > 1, plan, struct.Struct(planner.format)),
        )


def stamp_in(data: Buffer, stamp: str) -> tuple[Any, ...]:
    """Return the sender's own values in a frame, also if its tree cannot be read; () at worst."""
    view = memoryview(data)
    try:
        header = checked_header(view)
        places = places_of(unpack(header)[2][:1], PREFIX_BYTES + len(header), len(view))
        _, _, offset, nbytes = next(iter(places))
        return struct.unpack_from("<" + stamp, view[offset : offset + nbytes])
    except (DecodeError, MissingExtra, StopIteration, struct.error, *DAMAGE):
        return ()


def _stamp_of(arrays: list[Array]) -> memoryview:
    """Return the bytes of the leaf that holds the stamp; raises DecodeError if there is none."""
    if not arrays or arrays[0].dtype != np.uint8 or arrays[0].ndim != 1:
        raise DecodeError("a frame without a stamp")
    return arrays[0].data


class _NumbersDecoder(TreeDecoder):
    """Takes the tree's numbers from the stamp."""

    def __init__(self, arrays: list[Array]) -> None:
        super().__init__(arrays)
        self._stamp = _stamp_of(arrays)

    def _number(self, what: Any, where: Any) -> Any:
        code = _code_of(what)
        if type(where) is not int or where < 0:
            raise DecodeError("a number that is nowhere")
        (value,) = struct.unpack_from("<" + code, self._stamp, where)
        return value if what is code else decode_scalar(dtype_of(what), value)


def _code_of(what: Any) -> str:
    """Return :mod:`struct`'s code of a number; it is what stands for Python's own."""
    if what in CODES.values():
        return str(what)
    dtype = dtype_of(what) if type(what) is str else None
    if dtype is None or dtype.kind not in "biufc":
        raise DecodeError("a number of no kind of number")
    return f"{dtype.itemsize}s"


class _Place(NamedTuple):
    """Where an array is in its frame."""

    dtype: np.dtype[Any]
    shape: list[int]
    offset: int


class _Number(NamedTuple):
    """Which of the stamp's values a number is, and its dtype if it is one of numpy's."""

    at: int
    dtype: np.dtype[Any] | None


class _Planner(TreeDecoder):
    """Decodes a tree of places instead of one of values.

    Attributes:
        format: of the stamp, with the tree's numbers,
        count: and how many values that are.
    """

    def __init__(self, places: list[_Place], stamp: struct.Struct) -> None:
        super().__init__(places)  # type: ignore[arg-type]
        self.format = stamp.format
        self.count = len(stamp.unpack(bytes(stamp.size)))

    def _list(self, items: list[Any]) -> Any:
        if items and type(items[0]) is Mark and items[0] not in _PLANNED:
            raise _Other  # a space, say, that would be made of places
        return super()._list(items)

    def _number(self, what: Any, where: Any) -> Any:
        if where != struct.calcsize(self.format):
            raise _Other
        code = _code_of(what)
        self.format += code
        self.count += 1
        return _Number(self.count - 1, None if what == code else dtype_of(what))


def _checked_plan(plan: Any) -> Plan:
    """Return a plan as :func:`_built` takes it; raises _Other if it is none to be remembered."""
    kind = type(plan)
    if kind in _CONSTANTS:
        return (CONSTANT, plan)
    if kind is _Place:
        if not plan.dtype.itemsize or 0 in plan.shape:
            raise _Other
        return (ARRAY, plan.dtype, tuple(plan.shape), plan.offset)
    if kind is _Number:
        if plan.dtype is None:
            return (NUMBER, plan.at)
        return (SCALAR, plan.at, partial(decode_scalar, plan.dtype))
    if kind is dict and all(type(key) in _CONSTANTS for key in plan):
        return (DICT, tuple((key, _checked_plan(item)) for key, item in plan.items()))
    if kind is list or kind is tuple:
        return (ITEMS, kind, tuple(_checked_plan(item) for item in plan))
    if kind is set and all(type(item) in _CONSTANTS for item in plan):
        return (CONSTANT, plan)
    raise _Other


def _built(plan: Plan, memory: Any, values: tuple[Any, ...]) -> Any:
    """Make a value of a frame's memory and its stamp's values."""
    kind = plan[0]
    if kind == ARRAY:
        return np.ndarray(plan[2], plan[1], memory, plan[3])
    if kind == DICT:
        return {key: _built(item, memory, values) for key, item in plan[1]}
    if kind == NUMBER:
        return values[plan[1]]
    if kind == SCALAR:
        return plan[2](values[plan[1]])
    if kind == CONSTANT:
        return set(plan[1]) if type(plan[1]) is set else plan[1]
    return plan[1]([_built(item, memory, values) for item in plan[2]])
