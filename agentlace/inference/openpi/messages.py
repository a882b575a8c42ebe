"""Trees of values and arrays ⇄ openpi's messages: msgpack, in which an array is a map of bytes.

Only numbers travel: no dtype that holds objects, so nothing is ever unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from agentlace.errors import DecodeError, EncodeError

MAX_NDIM = 32
MAX_DEPTH = 64
_NUMBERS = re.compile(r"[<>|=][biuf][1248]", re.ASCII)
"""Names of the dtypes that travel: booleans, integers and floats."""
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_DATA, _DTYPE, _SHAPE = b"data", b"dtype", b"shape"


def unpack(message: bytes) -> Any:
    """Return a message's tree; its arrays are read-only views of the message.

    Raises:
        DecodeError: no msgpack, or an array that is damaged or of another kind than numbers.
    """
    try:
        return msgpack.unpackb(message, object_hook=_unpack_map, ext_hook=_refuse)
    except DecodeError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise DecodeError(f"a message that is not openpi's msgpack: {text[:200]}") from error


def pack(tree: Any) -> bytes:
    """Return the message that openpi's clients read.

    Tuples and sets become lists; floats that only ml_dtypes knows become float32.

    Raises:
        EncodeError: a value that openpi's messages cannot hold, with its path.
    """
    try:
        packed: bytes = msgpack.packb(_packable(tree, ()))
    except (OverflowError, ValueError) as error:
        raise EncodeError("", f"{str(error)[:200]}, which openpi's messages cannot hold") from error
    return packed


def _unpack_map(found: dict[Any, Any]) -> Any:
    if _ARRAY in found:
        return _unpack_array(found)
    if _SCALAR in found:
        return _unpack_scalar(found)
    return found


def _unpack_array(found: dict[Any, Any]) -> np.ndarray[Any, Any]:
    dtype, shape, data = _dtype(found), found.get(_SHAPE), found.get(_DATA)
    if type(shape) is not list or len(shape) > MAX_NDIM or type(data) is not bytes:
        raise DecodeError("an array without a shape or without bytes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise DecodeError(f"an array of shape {shape!r:.100}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DecodeError(f"{len(data)} bytes for {dtype} of shape {tuple(shape)!r:.100}")
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _unpack_scalar(found: dict[Any, Any]) -> Any:
    dtype, value = _dtype(found), found.get(_DATA)
    if type(value) not in (bool, int, float):
        raise DecodeError(f"a {dtype} that is a {type(value).__name__}")
    try:
        return dtype.newbyteorder("=").type(value)
    except (OverflowError, ValueError) as error:
        raise DecodeError(f"a {dtype} that is {value!r:.50}") from error


def _dtype(found: dict[Any, Any]) -> np.dtype[Any]:
    name = found.get(_DTYPE)
    if type(name) is not str or not _NUMBERS.fullmatch(name):
        raise DecodeError(f"an array of dtype {name!r:.50}: only numbers travel")
    try:
        return np.dtype(name)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"no dtype {name!r}") from error


def _refuse(code: int, data: bytes) -> Any:
    raise DecodeError(f"a msgpack extension of type {code}")


def _packable(tree: Any, path: tuple[str, ...]) -> Any:
    """Return the tree as msgpack takes it; raises EncodeError."""
    if len(path) > MAX_DEPTH:
        raise EncodeError("/".join(path)[:200], "nested too deeply")
    if isinstance(tree, Mapping):
        for key in tree:
            if type(key) not in (str, bytes):
                raise EncodeError("/".join(path), f"openpi's keys are texts, not {key!r:.50}")
        return {key: _packable(value, (*path, str(key))) for key, value in tree.items()}
    if isinstance(tree, (list, tuple, set, frozenset)):
        return [_packable(value, (*path, str(i))) for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, (str, bytes)):
        return tree
    if isinstance(tree, (np.ndarray, np.generic)):
        return _packable_numbers(tree, path)
    if isinstance(tree, (bool, int, float)):
        return tree
    raise EncodeError("/".join(path), f"openpi's messages hold no {type(tree).__name__}")


def _packable_numbers(
    value: np.ndarray[Any, Any] | np.generic, path: tuple[str, ...]
) -> dict[bytes, Any]:
    if value.dtype.type.__module__ == "ml_dtypes":
        value = value.astype(np.float32)
    if not _NUMBERS.fullmatch(value.dtype.str):
        raise EncodeError("/".join(path), f"openpi's messages hold no {value.dtype}")
    dtype = value.dtype.str
    if isinstance(value, np.ndarray):
        shape = list(value.shape)
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: dtype, _SHAPE: shape}
    return {_SCALAR: True, _DATA: value.item(), _DTYPE: dtype}
