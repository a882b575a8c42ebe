"""Trees stacked along a leading dimension, and replies taken apart again.

Trees may be stacked if they have one structure: the same keys in any order, lists and tuples of
the same length, arrays of the same shapes and dtypes. Numbers count as arrays without
dimensions. Texts, bytes and whatever else is no number are not stacked: they become a list, in
the callers' order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Structure = Any
"""What trees that may be stacked have in common; hashable."""
Array = np.ndarray[Any, Any]
_NUMBERS = (bool, int, float, complex)
_INT64 = np.iinfo(np.int64)


class Unbatched(ValueError):
    """A batch's reply that cannot be taken apart."""


def structure_of(tree: Any) -> Structure:
    """Return what a tree has in common with those that it may be stacked with."""
    if isinstance(tree, Mapping):
        items = sorted(((repr(key), key) for key in tree), key=lambda item: item[0])
        return ("dict", *((name, structure_of(tree[key])) for name, key in items))
    if isinstance(tree, (list, tuple)):
        return (type(tree).__name__, *(structure_of(item) for item in tree))
    array = _as_array(tree)
    return (
        type(tree).__name__ if array is None else (array.shape, array.dtype.str, str(array.dtype))
    )


def _as_array(value: Any) -> Array | None:
    """Return a leaf that is stacked as an array; None for one that is not."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        return np.asarray(value)
    if type(value) is int and not _INT64.min <= value <= _INT64.max:
        return None
    return np.asarray(value) if type(value) in _NUMBERS else None


def stack(trees: Sequence[Any], rows: int) -> Any:
    """Return one tree with a leading dimension.

    Args:
        trees: of one structure, at least one.
        rows: size of the leading dimension; the last tree fills those that are missing.
    """
    first = trees[0]
    if isinstance(first, Mapping):
        return {key: stack([tree[key] for tree in trees], rows) for key in first}
    if isinstance(first, (list, tuple)):
        columns = [stack(list(items), rows) for items in zip(*trees, strict=True)]
        return columns if isinstance(first, list) else tuple(columns)
    array = _as_array(first)
    if array is None:
        return [*trees, *[trees[-1]] * (rows - len(trees))]
    stacked = np.empty((rows, *array.shape), array.dtype)
    for row, tree in enumerate(trees):
        stacked[row] = tree
    stacked[len(trees) :] = stacked[len(trees) - 1]
    return stacked


Pick = Callable[[int], Any]
"""Returns one caller's part."""


def take_apart(reply: Any, rows: int) -> Pick:
    """Return what picks one row out of a batch's reply; its arrays are views.

    Arrays of any library (JAX's are fetched from their device once) and lists of texts must have
    a leading dimension of ``rows``. Plain values (None, texts, Python's numbers) are the same for
    all rows.

    Raises:
        Unbatched: another leading dimension, or none; names both numbers and the place.
    """
    return _picker(reply, rows, ())


def _picker(reply: Any, rows: int, path: tuple[str, ...]) -> Pick:
    if isinstance(reply, Mapping):
        named = {key: _picker(item, rows, (*path, str(key))) for key, item in reply.items()}
        return lambda row: {key: pick(row) for key, pick in named.items()}
    if isinstance(reply, (list, tuple)):
        return _sequence_picker(reply, rows, path)
    if isinstance(reply, (np.ndarray, np.generic)) or hasattr(reply, "__array__"):
        array = np.asarray(reply)
        _check(array.shape[0] if array.ndim else None, rows, path)
        return array.__getitem__
    return lambda row: reply


def _sequence_picker(reply: Any, rows: int, path: tuple[str, ...]) -> Pick:
    if isinstance(reply, list) and reply and all(isinstance(item, (str, bytes)) for item in reply):
        _check(len(reply), rows, path)
        return reply.__getitem__
    picks = [_picker(item, rows, (*path, str(i))) for i, item in enumerate(reply)]
    kind: Callable[[Any], Any] = list if isinstance(reply, list) else tuple
    return lambda row: kind(pick(row) for pick in picks)


def _check(size: int | None, rows: int, path: tuple[str, ...]) -> None:
    if size == rows:
        return
    where = f"{'/'.join(path)} of the reply" if path else "the reply"
    found = "no leading dimension" if size is None else f"a leading dimension of {size}"
    raise Unbatched(f"{where} has {found}, and the batch has {rows} rows")


def rows_for(calls: int, pad_to: Sequence[int]) -> int:
    """Return to how many rows so many calls are filled up."""
    return next((size for size in pad_to if size >= calls), calls)
