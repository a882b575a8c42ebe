"""Numpy dtypes ⇄ the names they have in a frame's header."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, cast

import numpy as np

from agentlace.errors import DecodeError, MissingExtra

DtypeName = str | list[Any]
"""``"<f4"`` for numpy's own, ``"bfloat16"`` for ml_dtypes, [itemsize, fields] for structured
ones; a field is [name, offset, dtype, shape, title or None]."""

MAX_DTYPE_DEPTH = 32

_PLAIN_KINDS = frozenset("biufcmMSUV")
_PLAIN_NAME = re.compile(r"[<>|][biufcmMSUV]\d{0,10}(\[\w{1,20}\])?", re.ASCII)


@lru_cache(maxsize=256)
def dtype_name(dtype: np.dtype[Any], depth: int = 0) -> DtypeName | None:
    """Return the header's name of ``dtype``, or None if its values may not travel.

    Object dtypes, whatever keeps its data outside of its own buffer, and a structure of
    structures deeper than :data:`MAX_DTYPE_DEPTH` have no name.
    """
    if dtype.names is not None:
        return _structured_name(dtype, depth) if depth < MAX_DTYPE_DEPTH else None
    if dtype.type.__module__ == "ml_dtypes":
        return str(dtype.name) if dtype.isnative else None
    return dtype.str if dtype.kind in _PLAIN_KINDS and not dtype.hasobject else None


def _structured_name(dtype: np.dtype[Any], depth: int) -> DtypeName | None:
    fields = []
    described: Any = dtype.fields
    for name in dtype.names or ():
        kind, offset, *title = described[name]
        base, shape = kind.subdtype or (kind, ())
        inner = dtype_name(base, depth + 1)
        if inner is None or not all(isinstance(text, str) for text in title):
            return None
        fields.append([name, offset, inner, list(shape), title[0] if title else None])
    return [dtype.itemsize, fields]


def dtype_of(name: Any, depth: int = 0) -> np.dtype[Any]:
    """Return the dtype called ``name`` in a header.

    Raises:
        DecodeError: no such dtype, or one whose values may not travel.
        MissingExtra: the name is one of ml_dtypes', which is not installed.
    """
    if isinstance(name, str):
        return _plain_dtype(name)
    if depth == MAX_DTYPE_DEPTH:
        raise DecodeError("a structured dtype is nested too deeply")
    try:
        itemsize, fields = name
        return _structured_dtype(itemsize, fields, depth)
    except (TypeError, ValueError, OverflowError) as error:
        raise DecodeError(f"bad structured dtype: {error}") from error


@lru_cache(maxsize=256)
def _plain_dtype(name: str) -> np.dtype[Any]:
    if name[:1] not in ("<", ">", "|"):
        return _extra_dtype(name)
    try:
        dtype = np.dtype(name) if _PLAIN_NAME.fullmatch(name) else None
    except (TypeError, ValueError) as error:
        raise DecodeError(f"bad dtype {name!r}") from error
    if dtype is None or dtype.str != name:  # numpy 1 lets an itemsize overflow
        raise DecodeError(f"dtype {name[:100]!r} is refused")
    return dtype


def _extra_dtype(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtra("ml_dtypes", "jax") from error
    scalar = getattr(ml_dtypes, name, None)
    if not isinstance(scalar, type) or not issubclass(scalar, np.generic):
        raise DecodeError(f"bad dtype {name[:100]!r}")
    return np.dtype(scalar)


def _structured_dtype(itemsize: Any, fields: Any, depth: int) -> np.dtype[Any]:
    keys = ("names", "offsets", "formats", "titles")
    spec: dict[str, Any] = {key: [] for key in keys}
    for name, offset, inner, shape, title in fields:
        kind = dtype_of(inner, depth + 1)
        if shape:
            kind = np.dtype((kind, tuple(shape)))
        if offset + kind.itemsize > itemsize:  # numpy itself lets this sum overflow
            raise DecodeError(f"the field {name!r} does not fit its dtype")
        if not isinstance(title, str | None):
            raise DecodeError(f"the field {name!r} has a title that is no text")
        for key, value in zip(keys, (name, offset, kind, title), strict=True):
            spec[key].append(value)
    spec["itemsize"] = itemsize
    dtype: np.dtype[Any] = np.dtype(cast(Any, spec))
    return dtype
