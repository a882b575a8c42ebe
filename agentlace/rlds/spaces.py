"""Examples of what Gymnasium spaces, and other descriptions of arrays, hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.errors import SchemaMismatch


def example_of(space: Any, path: str) -> Any:
    """Return zeros of a space's shape and dtype, an empty text, or a tree of them.

    Args:
        space: of Gymnasium, or whatever has a shape and a dtype (arrays, specs of JAX or
            TensorFlow), or a dict or tuple of them.
        path: where it belongs to, for the error.

    Raises:
        SchemaMismatch: it has no fixed shape.
    """
    inner = getattr(space, "spaces", space)
    if isinstance(inner, Mapping):
        return {key: example_of(value, f"{path}/{key}") for key, value in inner.items()}
    name = type(space).__name__
    if isinstance(inner, tuple) and name != "OneOf":
        return tuple(example_of(value, f"{path}/{i}") for i, value in enumerate(inner))
    if name == "Text":
        return ""
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None:
        raise SchemaMismatch(path, f"a {name} has no fixed shape and dtype")
    try:
        kept = np.dtype(getattr(dtype, "as_numpy_dtype", dtype))  # TensorFlow has its own
        return "" if kept.hasobject else np.zeros(tuple(shape), kept)
    except TypeError as error:
        raise SchemaMismatch(path, f"shape {shape} and dtype {dtype}: {error}") from error
