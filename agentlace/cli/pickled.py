"""Reading files of pickled numpy arrays without running what they name.

A pickle is a program: it names functions and calls them. Here each name stands for a harmless
object of ours, and a name that is not on the list ends the reading. Not even numpy's own functions
are reached: arrays are made anew from what the file declares, once that is checked.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from agentlace.data.columns import Array
from agentlace.errors import DecodeError

MAX_BYTES = 8 * 2**30
"""Of a file."""
NUMBERS, TEXTS = re.compile(r"[biufc]\d+"), re.compile(r"[SUMm]\d*")
"""Dtypes, by numpy's short names; all others are refused, such as O (Python objects) and V."""


class PickledArray:
    """An array or scalar of numpy's in a pickle.

    Attributes:
        value: is None for texts and dates, of which the converter has no use.
    """

    __slots__ = ("value",)

    def __init__(self, value: Array | None = None) -> None:
        self.value = value

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take what ``ndarray.__reduce__`` gave: version, shape, dtype, Fortran order, bytes."""
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def read_pickled(path: Path) -> Any:
    """Return what a file holds: lists, dicts, plain values and :class:`PickledArray`.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is too large, damaged or no pickle, or it names something else than plain
            values and numpy's arrays of numbers; the message says what. Nothing was executed.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if not 0 < size <= MAX_BYTES:
            raise DecodeError(f"{path} has {size:,} bytes, not 1 to {MAX_BYTES:,}")
        try:
            # A map never reads more than there is, however much the file says is coming.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check_memo(data)
                data.seek(0)
                return _Unpickler(data).load()
        except DecodeError as error:
            raise DecodeError(f"{path} is refused: {error}") from error
        except Exception as error:  # a damaged pickle may raise anything
            what = " ".join(str(error).split()) or type(error).__name__
            raise DecodeError(f"{path} is not a whole pickle of numpy arrays: {what}") from error


def _check_memo(data: Any) -> None:
    """Refuse a few bytes that make the reader allocate a table of gigabytes."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if "PUT" in opcode.name and not 0 <= int(argument or 0) <= count:
            raise DecodeError(f"{opcode.name} {argument} in its operation {count}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _GLOBALS:
            raise DecodeError(f"it names {f'{module}.{name}'!r}, and may only name numpy's arrays")
        return _GLOBALS[module, name]

    def persistent_load(self, key: Any, /) -> NoReturn:
        raise DecodeError("it refers to something outside, by a persistent id")


class _Global:
    """What a name in a pickle stands for: it may be called and, unlike a class, not altered."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise DecodeError("it alters what it names")


class _Dtype:
    """A dtype in a pickle; ``numpy`` is None for texts and dates."""

    __slots__ = ("numpy",)

    def __init__(self, name: str, *_: Any) -> None:
        if NUMBERS.fullmatch(name):
            self.numpy: np.dtype[Any] | None = np.dtype(name)
        elif TEXTS.fullmatch(name):
            self.numpy = None
        else:
            raise DecodeError(f"it has an array of dtype {name!r}, which is not one of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take what ``dtype.__reduce__`` gave: version, byte order, and more for other dtypes."""
        if self.numpy is not None:
            self.numpy = self.numpy.newbyteorder(state[1])


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> Array | None:
    """Return a view of the bytes that were read; they must be as many as were declared."""
    if dtype.numpy is None:
        return None
    declared = math.prod(shape) * dtype.numpy.itemsize
    if not isinstance(data, bytes | bytearray) or min(shape, default=0) < 0:
        raise DecodeError(f"it has an array of shape {shape} that does not come as bytes")
    if declared != len(data):
        raise DecodeError(f"it declares {declared:,} bytes of an array and has {len(data):,}")
    return np.frombuffer(data, dtype.numpy).reshape(shape, order=order)


def _from_buffer(
    data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str, axes: Any = None
) -> PickledArray:
    array = _array(data, dtype, shape, order if axes is None else "C")
    return PickledArray(array if array is None or axes is None else array.transpose(axes))


def _reconstruct(kind: Any, *_: Any) -> PickledArray:
    if kind is not _NDARRAY:
        raise DecodeError("it has an array of a class of its own")
    return PickledArray()  # BUILD comes next


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as protocols before 3 write them."""
    if encoding != "latin1":
        raise DecodeError(f"it has bytes in {encoding!r}")
    return text.encode("latin1")


def _bytes() -> bytes:
    """Return no bytes; protocols before 3 call ``bytes`` only for that."""
    return b""


def _uncallable(*_: Any) -> NoReturn:
    raise DecodeError("it calls numpy.ndarray")


_NDARRAY = _Global(_uncallable)
_GLOBALS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_Dtype),
    ("_codecs", "encode"): _Global(_encode),
    ("collections", "OrderedDict"): _Global(lambda: {}),
}
for _core in ("numpy.core", "numpy._core"):  # of numpy 1 and 2
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global(_reconstruct)
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global(
        lambda dtype, data: PickledArray(_array(data, dtype, (), "C"))
    )
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global(_from_buffer)
for _builtins in ("builtins", "__builtin__"):  # the latter before protocol 3
    _GLOBALS[_builtins, "bytes"] = _Global(_bytes)
    _GLOBALS[_builtins, "complex"] = _Global(complex)
    _GLOBALS[_builtins, "set"] = _Global(set)
    _GLOBALS[_builtins, "frozenset"] = _Global(frozenset)
