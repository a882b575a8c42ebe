"""One frame: a prefix, a msgpack header, and the leaves' raw bytes.

::

    offset  size  content
    0       2     b"AL"
    2       1     protocol version
    3       1     1 if the checksum covers the whole frame, 0 if it ends with the header
    4       4     CRC-32 of everything after it
    8       4     header's length
    12      8     frame's length
    20      …     header: msgpack of [kind, meta, [[dtype, shape], …], tree's msgpack]
    …       …     each leaf's bytes, C order, at a multiple of 64 bytes from the frame's start

Lengths are little-endian. A frame of at most :data:`WHOLE_CRC_BYTES` is checked whole; of a
larger one the checksum covers what gives it its structure, and its leaves are left to the
transport's own checksums: a CRC of a camera image would cost as much as moving it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

from agentlace.codec.dtypes import dtype_of
from agentlace.codec.offender import find_offender
from agentlace.codec.tree import (
    MAX_FRAME_BYTES,
    REFUSALS,
    Buffer,
    TreeDecoder,
    TreeEncoder,
    array_bytes,
    unpack,
)
from agentlace.errors import DecodeError, EncodeError

PROTOCOL_VERSION = 1
ALIGNMENT = 64
MAX_HEADER_BYTES = 64 << 20
WHOLE_CRC_BYTES = 16 << 10
MERGE_BYTES = 4 << 10

_PREFIX = struct.Struct("<2sBBIIQ")
START = struct.Struct("<2sBBI")
LENGTHS = struct.Struct("<IQ")
PREFIX_BYTES = _PREFIX.size
CRC_AT, CRC_END = 4, 8
DAMAGE = (*REFUSALS, LookupError, AttributeError, MemoryError, msgpack.UnpackException)
ZEROS = bytes(ALIGNMENT)


Array = np.ndarray[Any, Any]


class Frame(NamedTuple):
    """An encoded frame: buffers to be written one after the other, and their total size."""

    parts: list[Buffer]
    nbytes: int

    def __bytes__(self) -> bytes:
        """Return the frame in one piece (a copy)."""
        return b"".join(self.parts)

    def copy(self) -> memoryview:
        """Return the frame in one piece of writable memory that nothing else refers to."""
        data = np.empty(self.nbytes, np.uint8).data
        end = 0
        for part in self.parts:
            start, end = end, end + len(part)
            data[start:end] = part
        return data


class Message(NamedTuple):
    """A decoded frame."""

    kind: str
    meta: Mapping[str, Any]
    tree: Any


def encode(tree: Any, kind: str = "tree", meta: Mapping[str, Any] | None = None) -> Frame:
    """Encode a tree without copying its contiguous arrays.

    Args:
        tree: None, bool, int, float, str, bytes, list, tuple, set, dict, numpy arrays and
            scalars of any dtype but object, JAX arrays, FrozenDicts and Gymnasium spaces,
            nested at will.
        kind: what the frame is, for the receiver to check.
        meta: small plain values that travel beside the tree.

    Returns:
        The frame. Its parts refer to the arrays' memory: write it before the arrays change.

    Raises:
        EncodeError: a value that may not travel, with its path; or a frame that is too large.
    """
    encoder = TreeEncoder()
    try:
        packed = encoder.pack(tree)
    except REFUSALS as error:
        raise find_offender(tree) from error
    try:
        header = msgpack.packb([kind, meta or {}, encoder.leaves, packed])
    except REFUSALS as error:
        raise EncodeError("meta", str(error)) from error
    return assemble(header, encoder.buffers)


def assemble(header: bytes, buffers: list[list[Buffer]]) -> Frame:
    """Return the frame of a header and the leaves' bytes.

    Raises:
        EncodeError: it is too large.
    """
    parts: list[Buffer] = [b"", header]
    nbytes = PREFIX_BYTES + len(header)
    for leaf in buffers:
        size = sum(map(len, leaf))
        if not size:
            continue
        padding = -nbytes % ALIGNMENT
        if padding:
            parts.append(ZEROS[:padding])
        parts += leaf
        nbytes += padding + size
    if nbytes > MAX_FRAME_BYTES:
        raise EncodeError("", f"{nbytes} bytes are more than a frame's {MAX_FRAME_BYTES}")
    if len(header) > MAX_HEADER_BYTES:
        raise EncodeError("", f"{len(header)} bytes of values outside of arrays are too many")
    lengths = LENGTHS.pack(len(header), nbytes)
    if nbytes <= WHOLE_CRC_BYTES:
        body = b"".join([lengths, *parts[1:]])
        return Frame([prefix_of(body, True) + body], nbytes)
    parts[0] = prefix_of(lengths + header, False) + lengths
    return Frame(_merged(parts), nbytes)


def _merged(parts: list[Buffer]) -> list[Buffer]:
    """Join the small parts between large ones: each part costs its writer as much as a few KiB."""
    merged: list[Buffer] = []
    small: list[Buffer] = []
    for part in parts:
        if len(part) < MERGE_BYTES:
            small.append(part)
            continue
        if small:
            merged.append(b"".join(small))
            small = []
        merged.append(part)
    return [*merged, b"".join(small)] if small else merged


def prefix_of(checked: bytes, whole: bool) -> bytes:
    """Return what stands before the lengths of a frame, by what its checksum covers."""
    return START.pack(b"AL", PROTOCOL_VERSION, whole, zlib.crc32(checked))


def decode(data: Buffer, kind: str | None = None) -> Message:
    """Decode one whole frame.

    Args:
        data: the frame. Arrays are writable views of it if it is writable; a read-only one is
            copied once.
        kind: the kind that the caller expects, if it matters.

    Raises:
        DecodeError: truncated, damaged, of another protocol version, or of another kind.
        MissingExtra: it holds a value of a library that is not installed here.
    """
    view = memoryview(data)
    header = checked_header(view)
    try:
        return opened(view, header, kind)
    except DecodeError:
        raise
    except DAMAGE as error:
        raise damaged(error) from error


def opened(
    view: memoryview,
    header: Buffer,
    kind: str | None,
    decoder: Callable[[list[Array]], TreeDecoder] = TreeDecoder,
) -> Message:
    """Decode a frame whose header was checked; raises DecodeError or one of :data:`DAMAGE`."""
    found, meta, leaves, packed = unpack(header)
    if type(found) is not str or type(meta) is not dict:
        raise DecodeError("a frame without a kind or meta")
    if kind is not None and found != kind:
        raise DecodeError(f"a frame of kind {found!r} where {kind!r} was expected")
    if leaves and view.readonly:
        view = memoryview(bytearray(view))
    places = places_of(leaves, PREFIX_BYTES + len(header), len(view))
    memory = np.frombuffer(view, np.uint8)  # as long as it lives, a bytearray keeps its size
    arrays = [
        np.ndarray(shape, dtype, memory, offset) if nbytes else _empty(shape, dtype)
        for dtype, shape, offset, nbytes in places
    ]
    return Message(found, meta, decoder(arrays).unpack(packed))


def damaged(error: BaseException) -> DecodeError:
    """Return what one of :data:`DAMAGE` means."""
    return DecodeError(f"a damaged frame: {type(error).__name__} {error}")


def leaf_spans(data: memoryview) -> tuple[int, list[tuple[int, int]]]:
    """Return where a frame's header ends, and each leaf's offset and size in bytes.

    Raises:
        DecodeError: not a valid header, or not of a frame of this length.
        MissingExtra: as in :func:`decode`.
    """
    header = checked_header(data)
    end = PREFIX_BYTES + len(header)
    try:
        places = places_of(unpack(header)[2], end, len(data))
        return end, [(offset, nbytes) for *_, offset, nbytes in places]
    except DecodeError:
        raise
    except DAMAGE as error:
        raise damaged(error) from error


def checked_header(view: memoryview) -> memoryview:
    """Return the header's bytes, after every check that needs no decoding.

    Raises:
        DecodeError: it did not pass.
    """
    if len(view) < PREFIX_BYTES:
        raise DecodeError(f"a frame of {len(view)} bytes is truncated")
    magic, version, whole, crc, header_bytes, nbytes = _PREFIX.unpack_from(view)
    if magic != b"AL":
        raise DecodeError(f"not a frame of agentlace: it begins with {bytes(view[:8])!r}")
    if version != PROTOCOL_VERSION:
        raise DecodeError(
            f"a frame of protocol version {version}, this is {PROTOCOL_VERSION}: "
            "install the same agentlace on both ends"
        )
    if nbytes != len(view):
        raise DecodeError(f"a frame of {nbytes} bytes arrived with {len(view)}")
    end = PREFIX_BYTES + header_bytes
    if header_bytes > MAX_HEADER_BYTES or end > len(view):
        raise DecodeError(f"a header of {header_bytes} bytes does not fit its frame")
    if whole not in (0, 1) or whole != (nbytes <= WHOLE_CRC_BYTES):
        raise DecodeError("a frame with unknown flags")
    if zlib.crc32(view[CRC_END : len(view) if whole else end]) != crc:
        raise DecodeError("a damaged frame: its checksum does not match")
    return view[PREFIX_BYTES:end]


def places_of(
    leaves: list[Any], offset: int, end: int
) -> Iterator[tuple[np.dtype[Any], list[int], int, int]]:
    """Return each leaf's dtype, shape, offset and size in bytes, checked against what is there."""
    for name, shape in leaves:
        dtype = dtype_of(name)
        if type(shape) is not list or [s for s in shape if type(s) is not int or s < 0]:
            raise DecodeError("an array without a valid shape")
        nbytes = array_bytes(dtype, shape)
        if nbytes:
            offset += -offset % ALIGNMENT
        if offset + nbytes > end:
            raise DecodeError(f"an array of {nbytes} bytes does not fit its frame")
        yield dtype, shape, offset, nbytes
        offset += nbytes


def _empty(shape: list[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an array without bytes; as a field, a string dtype of size 0 keeps that size."""
    array: np.ndarray[Any, Any] = np.zeros(shape, [("", dtype)])["f0"]
    return array
