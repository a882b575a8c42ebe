"""Examples of what Gymnasium spaces hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentlace.errors import SchemaMismatch


def example_of(space: Any, path: str) -> Any:
    """Return zeros of a space's shape and dtype, an empty text, or a tree of them.

    Args:
        space: of Gymnasium.
        path: where it belongs to, for the error.

    Raises:
        SchemaMismatch: it has no fixed shape.
    """
    inner = getattr(space, "spaces", None)
    name = type(space).__name__
    if isinstance(inner, dict):
        return {key: example_of(value, f"{path}/{key}") for key, value in inner.items()}
    if name == "Tuple":
        return tuple(example_of(value, f"{path}/{i}") for i, value in enumerate(inner or ()))
    if name == "Text":
        return ""
    if getattr(space, "shape", None) is None or space.dtype is None:
        raise SchemaMismatch(path, f"a {name} space has no fixed shape")
    return np.zeros(space.shape, space.dtype)
