"""What a tree must look like: its structure, and its leaves' shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace.codec.dtypes import dtype_name, dtype_of
from agentlace.errors import DecodeError, SchemaMismatch

ROOT = "the tree"
MAX_DEPTH = 100
MAX_NAMED = 5
"""So many keys are listed in a message."""
MAX_NDIM = 64

_NUMBERS = {"bool": "b", "int": "iu", "float": "iuf"}
"""What is taken for a number that is declared by its type: kinds of dtypes."""
_KINDS = {bool: "b", int: "i", float: "f"}
_DICT, _LIST, _TUPLE, _ARRAY, _VALUE, _TYPE = "dict", "list", "tuple", "array", "value", "type"


@dataclass(frozen=True)
class ArraySpec:
    """An array's shape, in which None or -1 is any size, and its dtype."""

    shape: tuple[int | None, ...]
    dtype: Any

    def __post_init__(self) -> None:
        """Bring both into one form."""
        shape = (self.shape,) if isinstance(self.shape, int) else self.shape
        sizes = tuple(None if size in (None, -1) else int(size or 0) for size in shape)
        if any(size is not None and size < 0 for size in sizes):
            raise ValueError(f"shape {shape}: a size is a number, or None for any")
        object.__setattr__(self, "shape", sizes)
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    def __str__(self) -> str:
        """Return how it is called in messages."""
        return f"{self.dtype} of shape {_shown(self.shape)}"

    def admits(self, shape: tuple[int, ...], dtype: Any) -> bool:
        """Whether an array of this shape and dtype is such a one."""
        if dtype != self.dtype:
            return False
        if shape == self.shape:
            return True
        sizes = zip(shape, self.shape, strict=False)
        return len(shape) == len(self.shape) and all(b is None or a == b for a, b in sizes)


class Signature:
    """The structure of a tree and the shapes and dtypes of its leaves.

    Args:
        example: a tree like those that are expected. A leaf may be an array, anything else that
            has a ``shape`` and a ``dtype`` (such as ``jax.ShapeDtypeStruct``, or an ArraySpec,
            whose shape may have free sizes), a plain value, of which only the type counts, or a
            type itself: numpy's for its scalars, Python's numbers also for numpy's scalars of
            their kind. Dicts of every kind are taken for the same, lists and tuples are not.
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

    @property
    def tree(self) -> Any:
        """The tree with an ArraySpec for each array, and the type's name for each other leaf."""
        return _mapped(self._expected, lambda leaf: leaf.array or leaf.kind)

    def describe(self) -> Any:
        """Return what :meth:`described` makes this signature of, in plain values.

        Raises:
            SchemaMismatch: a leaf is of a dtype that may not travel.
        """
        return _described_as_values(self._expected, ())

    @classmethod
    def described(cls, values: Any) -> Signature:
        """Return the signature that :meth:`describe` described.

        Raises:
            DecodeError: it describes none.
        """
        signature = cls(None)
        try:
            signature._expected = _expected_of(values, 0)
        except (AttributeError, TypeError, ValueError) as error:
            raise DecodeError(f"no signature: {str(error)[:200]}") from error
        return signature


@dataclass(frozen=True)
class _Leaf:
    """What a leaf is: an array, or a value of a kind.

    Attributes:
        array: None for a value.
        kind: name of its type.
        is_type: whether the type was given in place of an example.
    """

    array: ArraySpec | None
    kind: str
    is_type: bool = False

    @classmethod
    def of(cls, value: Any) -> _Leaf:
        if isinstance(value, type):
            if issubclass(value, np.generic):
                return cls(ArraySpec((), value), value.__name__)
            return cls(None, value.__name__, is_type=True)
        if _is_array(value):
            return cls(ArraySpec(tuple(value.shape), value.dtype), type(value).__name__)
        return cls(None, type(value).__name__)

    def admits(self, value: Any) -> bool:
        """Whether a value is such a leaf."""
        if isinstance(value, (Mapping, list, tuple)):
            return False
        is_array = _is_array(value)
        if self.array is not None:
            return is_array and self.array.admits(tuple(value.shape), value.dtype)
        if self.is_type and self.kind in _NUMBERS:
            plain = _KINDS.get(type(value), "?")
            kind = np.dtype(value.dtype).kind if is_array and value.shape == () else plain
            return kind in _NUMBERS[self.kind]
        return not is_array and type(value).__name__ == self.kind

    def __str__(self) -> str:
        """Return how it is called in messages."""
        return f"a {self.kind}" if self.array is None else str(self.array)


def _is_array(value: Any) -> bool:
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype")


def _outline(tree: Any, path: tuple[str, ...]) -> Any:
    """Return the tree with a _Leaf for each leaf, and plain dicts."""
    if len(path) > MAX_DEPTH:
        raise SchemaMismatch("/".join(path)[:200], "nested too deeply, or it contains itself")
    if isinstance(tree, Mapping):
        return {key: _outline(value, (*path, str(key))) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = (_outline(value, (*path, str(i))) for i, value in enumerate(tree))
        return list(items) if isinstance(tree, list) else tuple(items)
    return _Leaf.of(tree)


def _mapped(outline: Any, function: Any) -> Any:
    """Return an outline with the function's result for each leaf."""
    if type(outline) is _Leaf:
        return function(outline)
    if type(outline) is dict:
        return {key: _mapped(inner, function) for key, inner in outline.items()}
    return type(outline)(_mapped(inner, function) for inner in outline)


def _described_as_values(outline: Any, path: tuple[str, ...]) -> list[Any]:
    if type(outline) is dict:
        items = {k: _described_as_values(v, (*path, str(k))) for k, v in outline.items()}
        return [_DICT, items]
    if type(outline) is not _Leaf:
        inner = [_described_as_values(v, (*path, str(i))) for i, v in enumerate(outline)]
        return [_LIST if type(outline) is list else _TUPLE, inner]
    if outline.array is None:
        return [_TYPE if outline.is_type else _VALUE, outline.kind]
    name = dtype_name(outline.array.dtype)
    if name is None:
        raise _mismatch(path, str(outline), "arrays of this dtype may not travel")
    return [_ARRAY, name, list(outline.array.shape)]


def _expected_of(values: Any, depth: int) -> Any:
    """Return the outline that is described; raises what damaged ones make it raise."""
    what, told, *more = values
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if what == _DICT:
        return {key: _expected_of(value, depth + 1) for key, value in told.items()}
    if what in (_LIST, _TUPLE):
        items = [_expected_of(value, depth + 1) for value in told]
        return items if what == _LIST else tuple(items)
    if what == _ARRAY:
        (shape,) = more
        if len(shape) > MAX_NDIM or not all(size is None or type(size) is int for size in shape):
            raise ValueError(f"a shape of {shape!r:.50}")
        return _Leaf(ArraySpec(tuple(shape), dtype_of(told)), "ndarray")
    if what not in (_VALUE, _TYPE) or type(told) is not str:
        raise ValueError(f"a leaf of {what!r:.50}")
    return _Leaf(None, told, is_type=what == _TYPE)


def _compare(expected: Any, tree: Any, path: tuple[str, ...]) -> None:
    if type(expected) is dict:
        if not isinstance(tree, Mapping):
            raise _mismatch(path, _described(tree), "a dict was expected")
        _compare_keys(expected, tree, path)
        for key, inner in expected.items():
            _compare(inner, tree[key], (*path, str(key)))
    elif type(expected) is _Leaf:
        if not expected.admits(tree):
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
    return str(_Leaf.of(tree))


def _shown(shape: tuple[int | None, ...]) -> str:
    return str(tuple("*" if size is None else size for size in shape)).replace("'", "")


def _listed(keys: Mapping[Any, Any]) -> str:
    names = [str(key)[:50] for key in keys]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more or "nothing"
