"""A tree of values ⇄ msgpack, with the arrays set aside as leaf buffers.

msgpack's C code walks dicts, lists and scalars; what it does not know comes to
:meth:`TreeEncoder._other`. Arrays are set aside; the rest becomes lists that begin with a mark,
so that msgpack walks them too: nesting costs neither Python calls nor copies, and msgpack's own
bound on depth (1,024, in old versions 511) holds for all of it.

==== ===========  ==================================================
code value        form
==== ===========  ==================================================
1    array        extension: the leaf's number, little-endian
2    scalar       [mark, dtype name, bytes]
3    tuple        [mark, its items …]
4    set          [mark, its items …]
5    frozenset    [mark, its items …]
6    int          extension: its hexadecimal digits, for more than 64 bits
7    FrozenDict   [mark, it as a dict]
8    space        [mark, its description …] (:mod:`agentlace.codec.spaces`)
9    boxed value  [mark, it]: an object array without dimensions, as np.asarray(a_dict) makes
10   number       [mark, what, where]: only in :mod:`agentlace.codec.stamped`
==== ===========  ==================================================

A mark is an extension of the value's code, without data.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from agentlace.codec import spaces
from agentlace.codec.dtypes import DtypeName, dtype_name, dtype_of
from agentlace.errors import DecodeError

Buffer = bytes | bytearray | memoryview

MAX_FRAME_BYTES = 512 << 20
"""A Redis string holds no more."""
MAX_NDIM = 32
"""numpy's own bound before version 2."""
MAX_EMPTY_ITEMS = 1 << 20
"""The items (of no bytes) or the rows (of no items) of an array that holds no bytes at all."""
MAX_BIGINT_DIGITS = 4096
REFER_BYTES = 1024
"""From this size on an array is referred to; copying a smaller one is quicker."""
SMALL_BYTES = 1024
"""A msgpack up to this size cannot make its reader reserve more than 3 MB."""

REFUSALS = (TypeError, ValueError, OverflowError, RuntimeError)
"""What :meth:`TreeEncoder.pack` raises; RuntimeError is a tree that changes meanwhile, a deleted
JAX array, or (as RecursionError) a tree that contains itself.
"""

ARRAY, BIGINT = 1, 6


class Mark(enum.IntEnum):
    """What a list becomes that begins with it."""

    SCALAR = 2
    TUPLE = 3
    SET = 4
    FROZENSET = 5
    FROZENDICT = 7
    SPACE = 8
    BOXED = 9
    NUMBER = 10


PACKED = {mark: msgpack.ExtType(int(mark), b"") for mark in Mark}
_MARKS = {int(mark): mark for mark in Mark}


@dataclass
class Column:
    """One array in pieces that need not be joined."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    buffers: list[Buffer]


class TreeEncoder:
    """Packs one tree; afterwards ``leaves`` and ``buffers`` hold its arrays."""

    def __init__(self) -> None:
        """Start without any."""
        self.leaves: list[tuple[DtypeName, tuple[int, ...]]] = []
        self.buffers: list[list[Buffer]] = []
        self._left = spaces.MAX_COPIED_ITEMS

    def pack(self, tree: Any) -> bytes:
        """Return the tree's msgpack; raises one of :data:`REFUSALS`."""
        packed: bytes = msgpack.packb(tree, default=self._other, strict_types=True)
        return packed

    def _other(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray or kind is Column:
            return _box(value) if is_box(value) else self._array(value)
        if kind is tuple:
            return [PACKED[Mark.TUPLE], *value]
        if kind is set or kind is frozenset:
            return [PACKED[Mark.SET if kind is set else Mark.FROZENSET], *value]
        if kind is int:
            return _bigint(value)
        if isinstance(value, dict):  # OrderedDict, defaultdict, Counter
            return dict(value)
        if isinstance(value, np.generic):
            return self._scalar(value)
        return self._foreign(value)

    def _array(self, array: np.ndarray[Any, Any] | Column) -> Any:
        name = dtype_name(array.dtype)
        if name is None:
            raise TypeError(f"an array of dtype {array.dtype} may not travel; {_hint(array.dtype)}")
        array_bytes(array.dtype, array.shape)
        self.leaves.append((name, array.shape))
        self.buffers.append(array.buffers if isinstance(array, Column) else [raw_bytes(array)])
        return msgpack.ExtType(ARRAY, (len(self.leaves) - 1).to_bytes(4, "little"))

    def _scalar(self, value: np.generic[Any]) -> Any:
        name = dtype_name(value.dtype)
        if name is None:
            raise TypeError(f"a scalar of dtype {value.dtype} may not travel")
        raw = value.tobytes()[: value.dtype.itemsize]  # an empty string's has a zero too many
        return [PACKED[Mark.SCALAR], name, raw]

    def _foreign(self, value: Any) -> Any:
        """Encode a value of a library that may not even be installed here."""
        if _is_instance(value, "jax", "Array"):
            return self._other(np.asarray(value))
        if is_frozen_dict(value):
            return [PACKED[Mark.FROZENDICT], value.unfreeze()]
        if _is_instance(value, "gymnasium", "Space"):
            description = spaces.describe(value)
            self._left = spaces.charge(description, self._left)
            return [PACKED[Mark.SPACE], *description]
        if type(value) is np.memmap:
            return self._other(value.view(np.ndarray))
        raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} may not travel")


def raw_bytes(array: np.ndarray[Any, Any]) -> Buffer:
    """Return the array's bytes in C order: a view if it is large and contiguous, else a copy."""
    if array.nbytes < REFER_BYTES:
        return array.tobytes()
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    view: memoryview = np.ndarray(array.nbytes, np.uint8, array).data
    return view


def array_bytes(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    """Return how many bytes an array takes.

    Raises:
        ValueError: neither end lets such an array into a frame.
    """
    if len(shape) > MAX_NDIM:
        raise ValueError(f"an array of {len(shape)} dimensions, at most {MAX_NDIM} may travel")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > MAX_FRAME_BYTES:
        raise ValueError(f"an array of {nbytes} bytes, a frame holds {MAX_FRAME_BYTES}")
    if not nbytes and math.prod(max(size, 1) for size in shape) > MAX_EMPTY_ITEMS:
        raise ValueError(f"an array without bytes of more than {MAX_EMPTY_ITEMS} items")
    return nbytes


def is_box(value: Any) -> bool:
    """Tell whether value is an object array without dimensions, which holds one value."""
    return type(value) is np.ndarray and not value.shape and value.dtype.kind == "O"


def _box(array: np.ndarray[Any, Any]) -> Any:
    """Return what stands for an object array without dimensions."""
    return [PACKED[Mark.BOXED], array[()]]


def _hint(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject:
        return "use a numeric or string dtype, or a list"
    return "use a plain numpy dtype"


def _bigint(value: int) -> Any:
    digits = hex(value).encode()
    if len(digits) > MAX_BIGINT_DIGITS:
        raise OverflowError(f"an int of more than {MAX_BIGINT_DIGITS} digits")
    return msgpack.ExtType(BIGINT, digits)


def is_frozen_dict(value: Any) -> bool:
    """Tell whether value is a flax FrozenDict, without importing flax for it."""
    return _is_instance(value, "flax.core.frozen_dict", "FrozenDict")


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Tell whether value is a module.name, without importing the module for it."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)


class TreeDecoder:
    """Unpacks one tree whose arrays are already there."""

    def __init__(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Take the arrays, in the order of their numbers."""
        self._arrays = dict(enumerate(arrays))
        self._left = spaces.MAX_COPIED_ITEMS
        self._marks = 0

    def unpack(self, packed: Buffer) -> Any:
        """Return the tree; raises DecodeError or any of msgpack's and numpy's errors."""
        tree = unpack(packed, ext_hook=self._extension, list_hook=self._list)
        if self._marks:
            raise DecodeError("a mark that does not begin a list")
        return tree

    def _extension(self, code: int, data: bytes) -> Any:
        if code == ARRAY:  # each leaf once, or a few bytes could ask for many copies of it
            return self._arrays.pop(int.from_bytes(data, "little"))
        if code == BIGINT:
            return _decode_bigint(data)
        self._marks += 1
        return _MARKS[code]

    def _list(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not Mark:
            return items
        self._marks -= 1
        mark = items.pop(0)
        if mark is Mark.TUPLE:
            return tuple(items)
        if mark is Mark.SCALAR:
            name, raw = items
            return decode_scalar(dtype_of(name), raw)
        if mark is Mark.FROZENDICT:
            return _frozen_dict(*items)
        if mark is Mark.BOXED:
            return _boxed(*items)
        if mark is Mark.SPACE:
            self._left = spaces.charge(items, self._left)
            return spaces.build(items)
        if mark is Mark.NUMBER:
            return self._number(*items)
        return set(items) if mark is Mark.SET else frozenset(items)

    def _number(self, what: Any, where: Any) -> Any:
        raise DecodeError("a number that is kept elsewhere, where none belongs")


def unpack(packed: Buffer, ext_hook: Any = None, list_hook: Any = None) -> Any:
    """Decode one msgpack, after a look at whether it is whole.

    msgpack reserves the room that a list announces before it has seen an item of it. Without
    the look, lists that announce more than they have, one in the other, take 8,000 times the
    bytes that came.
    """
    if len(packed) > SMALL_BYTES:
        unpacker = msgpack.Unpacker(max_buffer_size=len(packed))
        unpacker.feed(packed)
        unpacker.skip()
    ext_hook = ext_hook or _refuse_extension
    return msgpack.unpackb(packed, ext_hook=ext_hook, list_hook=list_hook, strict_map_key=False)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise DecodeError(f"an extension {code} where none belongs")


def decode_scalar(dtype: np.dtype[Any], raw: bytes) -> Any:
    """Return the numpy scalar of these bytes; raises DecodeError if they do not fit."""
    if type(raw) is not bytes or len(raw) != dtype.itemsize:
        raise DecodeError("a scalar's bytes do not fit its dtype")
    if dtype.kind == "S":  # an array's item would lose the zeros at its end
        return np.bytes_(raw)
    if dtype.kind == "U":
        encoding = "utf-32-be" if dtype.str[0] == ">" else "utf-32-le"
        return np.str_(raw.decode(encoding, "surrogatepass"))
    if not raw:
        return np.zeros((), dtype)[()]
    return np.frombuffer(bytearray(raw), dtype)[0]


def _decode_bigint(digits: bytes) -> int:
    if len(digits) > MAX_BIGINT_DIGITS:
        raise DecodeError("an int of too many digits")
    return int(digits, 16)


def _boxed(value: Any) -> Any:
    """Return an object array without dimensions that holds a value."""
    box: np.ndarray[Any, Any] = np.empty((), object)
    box[()] = value
    return box


def _frozen_dict(tree: Any) -> Any:
    """Return a flax FrozenDict where flax is installed, else the dict itself."""
    if type(tree) is not dict:
        raise DecodeError("a FrozenDict that is not a dict")
    try:
        from flax import core
    except ImportError:
        return tree
    make: Any = core.FrozenDict
    return make(tree)
