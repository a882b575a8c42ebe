"""Trees of arrays with a leading dimension, and the schema that transitions must fit.

A transition is a tree: dicts and tuples with arrays and numbers at the leaves. Stored, the
same tree holds one array per leaf, whose leading dimension counts transitions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from agentlace.errors import SchemaMismatch

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


def leaves_of(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its path, such as ``observations/wrist``."""
    kind = type(tree)
    if kind is np.ndarray:  # what most are; asking for a Mapping takes ten times as long
        yield "/".join(path), tree
    elif kind is dict or isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves_of(value, (*path, str(key)))
    elif isinstance(tree, tuple):
        for i, value in enumerate(tree):
            yield from leaves_of(value, (*path, str(i)))
    else:
        yield "/".join(path), tree


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict whose leaves have these paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply ``function`` to the leaves of trees of one structure."""
    kind = type(tree)
    if kind is np.ndarray:
        return function(tree, *rest)
    if kind is dict or isinstance(tree, Mapping):
        return {k: map_leaves(function, v, *[r[k] for r in rest]) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_leaves(function, *items) for items in zip(tree, *rest, strict=True))
    return function(tree, *rest)


_STEP = {
    4: ("observations", "rewards", "dones"),
    5: ("observations", "rewards", "terminated", "truncated"),
}


def as_transition(data: Any) -> Any:
    """Return a transition for what a program inserts.

    The tuples that ``env.step`` returns, of four (``done``) or five items (``terminated``,
    ``truncated``), become dicts without their ``info``. A reward may be 0 now and 0.5 later, so
    it is always a float64.
    """
    if not isinstance(data, tuple) or len(data) not in _STEP or not isinstance(data[-1], Mapping):
        return data
    step = dict(zip(_STEP[len(data)], data[:-1], strict=True))
    return {**step, "rewards": np.asarray(data[1], np.float64)}


class Schema:
    """Shapes and dtypes of one transition's leaves.

    Args:
        example: a transition, or a tree of ``np.ndarray`` or ``(shape, dtype)`` leaves.
    """

    def __init__(self, example: Any) -> None:
        for path, leaf in leaves_of(example):
            if np.asarray(leaf).dtype.hasobject:
                kind = type(leaf).__name__
                raise SchemaMismatch(path, f"a {kind} cannot be stored: use arrays or numbers")
        self.example = map_leaves(np.asarray, example)
        self._expected = {path: (a.shape, a.dtype) for path, a in leaves_of(self.example)}
        self._warned: set[str] = set()

    @property
    def nbytes(self) -> int:
        """Return the bytes of one transition."""
        return sum(leaf.nbytes for _, leaf in leaves_of(self.example))

    def allocate(self, capacity: int) -> Any:
        """Return the tree of zeroed storage arrays."""
        return map_leaves(lambda a: np.zeros((capacity, *a.shape), a.dtype), self.example)

    def check(self, columns: Any, lead: int = 1) -> Any:
        """Return the tree with exactly this schema's leaves, or raise.

        Keys that the schema does not know are an error as much as those that are missing.

        Args:
            columns: transitions as columns, or one transition if ``lead`` is 0.
            lead: number of leading dimensions before each leaf's shape.

        Raises:
            SchemaMismatch: naming the leaf and both shapes or dtypes.
        """
        found = dict(leaves_of(columns))
        for path in self._expected.keys() - found.keys():
            raise SchemaMismatch(path, "missing from the transition, but part of the store")
        for path, value in found.items():
            if path not in self._expected:
                known = ", ".join(sorted(self._expected))
                raise SchemaMismatch(path, f"unknown to the store, which has {known}")
            self._check_leaf(path, np.asarray(value), lead)
        return columns

    def _check_leaf(self, path: str, value: Array, lead: int) -> None:
        shape, dtype = self._expected[path]
        if value.dtype is dtype and value.shape[lead:] == shape:
            return
        if value.shape[lead:] != shape:
            raise SchemaMismatch(path, f"shape {value.shape[lead:]}, the store has {shape}")
        if value.dtype == dtype:
            return
        cut = dtype.kind in "SUV" and value.dtype.itemsize > dtype.itemsize
        if cut or not np.can_cast(value.dtype, dtype, "same_kind"):
            raise SchemaMismatch(path, f"dtype {value.dtype}, the store has {dtype}")
        if path not in self._warned and value.dtype.itemsize > dtype.itemsize:
            self._warned.add(path)
            log.warning("%s comes as %s and is stored as %s", path, value.dtype, dtype)
