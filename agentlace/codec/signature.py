"""What a tree must look like: its structure, and its leaves' shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.errors import SchemaMismatch

ROOT = "the tree"
MAX_DEPTH = 100
MAX_NAMED = 5
"""So many keys are listed in a message."""


class Signature:
    """The structure of a tree and the shapes and dtypes of its leaves.

    Args:
        example: a tree like those that are expected. A leaf may be an array, anything else that
            has a ``shape`` and a ``dtype`` (such as ``jax.ShapeDtypeStruct``), or a plain value,
            of which only the type counts. Dicts of every kind are taken for the same, lists and
            tuples are not.
    """

    def __init__(self, example: Any) -> None:
        self._expected = _outline(example, ())

    def check(self, tree: Any) -> None:
        """Compare a tree.

        Raises:
            SchemaMismatch: it differs; names the first place that does, in the expected tree's
                order, and what is there and what was expected.
        """
        _compare(self._expected, tree, ())


class _Leaf:
    """What a leaf is."""

    def __init__(self, value: Any) -> None:
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
        self.shape = tuple(value.shape) if is_array else None
        self.dtype = np.dtype(value.dtype) if is_array else None
        self.kind = type(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Leaf):
            return NotImplemented
        if self.dtype is None or other.dtype is None:
            return self.dtype is other.dtype and self.kind is other.kind
        return (self.shape, self.dtype) == (other.shape, other.dtype)

    def __str__(self) -> str:
        """Return how it is called in messages."""
        if self.dtype is None:
            return f"a {self.kind.__name__}"
        return f"{self.dtype} of shape {self.shape}"


def _outline(tree: Any, path: tuple[str, ...]) -> Any:
    """Return the tree with a _Leaf for each leaf, and plain dicts."""
    if len(path) > MAX_DEPTH:
        raise SchemaMismatch("/".join(path)[:200], "nested too deeply, or it contains itself")
    if isinstance(tree, Mapping):
        return {key: _outline(value, (*path, str(key))) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = (_outline(value, (*path, str(i))) for i, value in enumerate(tree))
        return list(items) if isinstance(tree, list) else tuple(items)
    return _Leaf(tree)


def _compare(expected: Any, tree: Any, path: tuple[str, ...]) -> None:
    if type(expected) is dict:
        if not isinstance(tree, Mapping):
            raise _mismatch(path, _described(tree), "a dict was expected")
        _compare_keys(expected, tree, path)
        for key, inner in expected.items():
            _compare(inner, tree[key], (*path, str(key)))
    elif type(expected) is _Leaf:
        found = None if isinstance(tree, (Mapping, list, tuple)) else _Leaf(tree)
        if found != expected:
            raise _mismatch(path, _described(tree), f"{expected} was expected")
    else:
        kind = type(expected)
        if not isinstance(tree, kind) or len(tree) != len(expected):
            wanted = f"a {kind.__name__} of {len(expected)} was expected"
            raise _mismatch(path, _described(tree), wanted)
        for i, inner in enumerate(expected):
            _compare(inner, tree[i], (*path, str(i)))


def _compare_keys(
    expected: Mapping[Any, Any], tree: Mapping[Any, Any], path: tuple[str, ...]
) -> None:
    for key in expected:
        if key not in tree:
            raise _mismatch((*path, str(key)), "missing", f"there is {_listed(tree)}")
    for key in tree:
        if key not in expected:
            raise _mismatch((*path, str(key)), "not expected", f"only {_listed(expected)}")


def _mismatch(path: tuple[str, ...], found: str, wanted: str) -> SchemaMismatch:
    return SchemaMismatch("/".join(path) or ROOT, f"{found}, {wanted}")


def _described(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return "a dict"
    if isinstance(tree, (list, tuple)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return str(_Leaf(tree))


def _listed(keys: Mapping[Any, Any]) -> str:
    names = [str(key)[:50] for key in keys]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more or "nothing"
