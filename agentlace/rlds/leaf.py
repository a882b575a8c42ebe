"""What one leaf of a step or of the metadata is: how it comes, and how it is stored."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agentlace.codec.dtypes import dtype_of
from agentlace.errors import SchemaMismatch
from agentlace.rlds.images import ImageFormat, encode_image, format_of, is_image

Array = np.ndarray[Any, Any]
Kind = Literal["number", "image", "text", "bytes"]
ACTION = "action"
MAX_ITEMSIZE = 8
"""Bytes of a number."""
MANY = 64
"""Integers in one array beyond which they are packed; TensorFlow's format gives each its own
one to ten bytes, and takes long."""


@dataclass(frozen=True)
class Leaf:
    """One leaf.

    Attributes:
        kind: what it is.
        shape: of one value, as it comes.
        dtype: name of its dtype, as it comes; ``str`` or ``bytes`` for those kinds.
        stored_shape: of one value in the dataset: images without dimensions of 1 before,
            actions flat.
        stored_dtype: in the dataset: float actions are float32.
        encoding: ``png`` or ``jpeg`` of an image; of numbers ``none``, ``bytes`` (float64, of
            which TensorFlow's format would keep half) or ``zlib`` (many integers).
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    stored_shape: tuple[int, ...]
    stored_dtype: str
    encoding: str

    def check(self, value: Any, path: str) -> Any:
        """Return a value as it is stored, before it is encoded.

        Args:
            value: as it comes.
            path: where it comes from, for the error.

        Raises:
            SchemaMismatch: it is something else; names both shapes or dtypes.
        """
        if self.kind in ("text", "bytes"):
            return self._text(value, path)
        array = _as_array(value, path)
        if array.shape != self.shape:
            raise SchemaMismatch(path, f"shape {array.shape}, the dataset has {self.shape}")
        kept = self._cast(array, path)
        return np.ascontiguousarray(kept.reshape(self.stored_shape))

    def _cast(self, array: Array, path: str) -> Array:
        declared, stored = _dtype(self.dtype), np.dtype(self.stored_dtype)
        if array.dtype == declared or array.dtype == stored:
            return array.astype(stored, copy=False)
        integers = array.dtype.kind in "iu" and declared.kind in "iu"
        if not integers and not np.can_cast(array.dtype, declared, "same_kind"):
            raise SchemaMismatch(path, f"dtype {array.dtype}, the dataset has {self.dtype}")
        kept = array.astype(stored)
        if array.dtype.kind in "iu" and not np.array_equal(kept, array):
            reason = f"a value of {array.dtype} that does not fit the dataset's {self.dtype}"
            raise SchemaMismatch(path, reason)
        return kept

    def _text(self, value: Any, path: str) -> list[bytes]:
        array = _as_array(value, path)
        kinds = "U" if self.dtype == "str" else "S"
        items = array.reshape(-1).tolist()
        if isinstance(value, bytes):
            items = [value]  # an array would drop zeros at the end
        elif array.dtype.kind not in kinds:
            raise SchemaMismatch(path, f"dtype {array.dtype}, the dataset has {self.dtype}")
        if array.shape != self.shape:
            raise SchemaMismatch(path, f"shape {array.shape}, the dataset has {self.shape}")
        if isinstance(value, bytes) and self.dtype != "bytes":
            raise SchemaMismatch(path, "bytes, the dataset has str")
        return [item.encode() if isinstance(item, str) else item for item in items]

    def packed(self, checked: Any) -> bytes:
        """Return a checked value of a leaf that is stored as one string of bytes."""
        if self.kind == "image":
            format: ImageFormat = "jpeg" if self.encoding == "jpeg" else "png"
            return encode_image(checked, format)
        data: bytes = checked.tobytes()
        return zlib.compress(data, 1) if self.encoding == "zlib" else data

    @property
    def is_packed(self) -> bool:
        """Whether a value is stored as one string of bytes."""
        return self.encoding != "none"

    def zero(self) -> Any:
        """Return a value of zeros, or an empty text, as it comes."""
        if self.kind in ("text", "bytes"):
            return np.zeros(self.shape, "U1" if self.kind == "text" else "S1")
        return np.zeros(self.shape, _dtype(self.dtype))

    def restored(self, value: Any) -> Any:
        """Return a value that was read as it came once."""
        if self.kind == "bytes" and self.shape == ():
            return bytes(value)
        if self.kind == "text":
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(value)]
            return texts[0] if self.shape == () else np.array(texts, str).reshape(self.shape)
        if self.kind == "bytes":
            return np.asarray(value, object).reshape(self.shape).astype("S")
        array = np.asarray(value).reshape(self.shape).astype(_dtype(self.dtype), copy=False)
        return array if array.ndim else array[()]

    def to_json(self) -> list[Any]:
        """Return plain values that :func:`leaf_from_json` takes."""
        return [self.kind, list(self.shape), self.dtype, self.encoding]


def leaf_of(value: Any, path: str, image_format: ImageFormat) -> Leaf:
    """Return the leaf that a value is one of.

    Raises:
        SchemaMismatch: no dataset can hold such values.
    """
    array = _as_array(value, path)
    if not array.size:
        raise SchemaMismatch(path, f"a dataset cannot hold empty arrays, of shape {array.shape}")
    if array.dtype.kind in "US":
        kind: Kind = "text" if array.dtype.kind == "U" else "bytes"
        return _leaf(path, kind, array.shape, "str" if kind == "text" else "bytes", "none")
    if not _is_number(array.dtype):
        what = type(value).__name__ if array.dtype.hasobject else str(array.dtype)
        raise SchemaMismatch(path, f"a dataset cannot hold {what}: use numbers, arrays or text")
    return _number(path, array.shape, array.dtype, image_format)


def _as_array(value: Any, path: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise SchemaMismatch(path, f"a {type(value).__name__} that is no array: {error}") from error


def _number(path: str, shape: tuple[int, ...], dtype: Any, image_format: ImageFormat) -> Leaf:
    if path != ACTION and is_image(shape, dtype):
        encoding: str = format_of(shape, dtype, image_format)
        return _leaf(path, "image", shape, dtype.name, encoding)
    packs = dtype.kind in "biu" and int(np.prod(shape)) > MANY
    doubles = dtype == np.float64 and path != ACTION
    encoding = "zlib" if packs else "bytes" if doubles else "none"
    return _leaf(path, "number", shape, dtype.name, encoding)


def _leaf(path: str, kind: Kind, shape: tuple[int, ...], dtype: str, encoding: str) -> Leaf:
    """Fill in how it is stored, which follows from the rest."""
    stored_shape, stored_dtype = shape, dtype
    if kind == "image":
        stored_shape = shape[-3:]
    elif kind == "number":
        kept = _dtype(dtype)
        if path == ACTION and kept.kind == "f":
            stored_shape, stored_dtype = (int(np.prod(shape)),), "float32"
        elif kept.kind not in "biuf":
            stored_dtype = "float32"
    return Leaf(kind, shape, dtype, stored_shape, stored_dtype, encoding)


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Return whether TensorFlow knows such numbers; bfloat16 is stored as float32."""
    known = dtype.kind in "biuf" and dtype.itemsize <= MAX_ITEMSIZE
    return known or dtype.name == "bfloat16"


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        return dtype_of(name)


def leaf_from_json(path: str, values: list[Any]) -> Leaf:
    """Return the leaf that :meth:`Leaf.to_json` described."""
    kind, shape, dtype, encoding = values
    return _leaf(path, kind, tuple(shape), dtype, encoding)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by their path, such as ``observation/wrist``.

    Raises:
        SchemaMismatch: a key has a slash, or two leaves have one path.
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if "/" in key or not key:
            raise SchemaMismatch(path, f"the key {key!r} must have letters, and no slash")
        leaves.update(flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dicts whose leaves have these paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree
