"""Gymnasium spaces ⇄ plain values that a frame can carry.

A description is a list: the space's class name, then its parameters. Rebuilding one makes a
space with the same parameters and a fresh random generator.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from agentlace.errors import DecodeError, MissingExtra

MAX_COPIED_ITEMS = 1 << 20
"""What the Graphs and stacked Sequences of one frame may copy, see :func:`charge`."""
ITEMS_PER_SPACE = 4096
"""What a space counts for, beside the numbers in it: copying one takes about a millisecond."""


def describe(space: Any) -> list[Any]:
    """Return the description of a Gymnasium space.

    Raises:
        TypeError: the space's class is not one of Gymnasium's own.
    """
    name = type(space).__name__
    if name not in _PARAMETERS or not _is_space(space):
        raise TypeError(f"the space {type(space).__qualname__} is not one of Gymnasium's own")
    return [name, *_PARAMETERS[name](space)]


def build(description: list[Any]) -> Any:
    """Return the space that :func:`describe` described.

    Raises:
        DecodeError: not a description of a known space.
        MissingExtra: gymnasium is not installed.
    """
    try:
        from gymnasium import spaces
    except ImportError as error:
        raise MissingExtra("gymnasium", "gym") from error
    name, *parameters = description
    try:
        return _BUILDERS[name](spaces, *parameters)
    except Exception as error:  # whatever Gymnasium says about parameters that it did not make
        raise DecodeError(f"not a space: {type(error).__name__} {error}") from error


def charge(description: list[Any], left: int) -> int:
    """Return how many of ``left`` items a frame may still have copied after this space.

    A Graph and a stacked Sequence copy what they hold, so a few nested ones would grow without
    bound. Both ends count what is copied for one frame, from :data:`MAX_COPIED_ITEMS` down.

    Raises:
        ValueError: no more are left, or it is no description.
    """
    if not description or type(description[0]) is not str:
        raise ValueError("a space without a name")
    if _copies(description):
        left -= sum(_size(describe(space)) for space in _held(description[1:3]))
    if left < 0:
        raise ValueError("a Graph or stacked Sequence holds too much, or there are too many")
    return left


def _copies(description: list[Any]) -> bool:
    return description[0] == "Graph" or (description[0] == "Sequence" and description[2] is True)


def _size(description: list[Any]) -> int:
    """Return how many items a space holds, with the copies that it made."""
    name, *parameters = description
    held = sum(_size(describe(space)) for space in _held(parameters))
    own = _COUNTS[name](*parameters) if name in _COUNTS else 0
    return ITEMS_PER_SPACE + own + (2 * held if _copies(description) else held)


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _held(item)
    elif _is_space(value):
        yield value


def _is_space(value: Any) -> bool:
    return type(value).__module__.startswith("gymnasium.spaces")


_COUNTS: dict[str, Callable[..., int]] = {
    "Box": lambda low, *_: int(low.size),
    "MultiDiscrete": lambda nvec, *_: int(nvec.size),
    "MultiBinary": lambda n: math.prod(n if isinstance(n, list) else [n]),
    "Text": lambda low, high, chars: len(chars),
}

_PARAMETERS: dict[str, Callable[[Any], list[Any]]] = {
    "Box": lambda s: [s.low, s.high, s.dtype.str, s.bounded_below, s.bounded_above],
    "Discrete": lambda s: [int(s.n), int(s.start), s.dtype.str],
    "MultiDiscrete": lambda s: [s.nvec, s.start, s.dtype.str],
    "MultiBinary": lambda s: [s.n if isinstance(s.n, int) else [int(n) for n in s.n]],
    "Text": lambda s: [int(s.min_length), int(s.max_length), "".join(s.character_list)],
    "Dict": lambda s: [[key, inner] for key, inner in s.spaces.items()],
    "Tuple": lambda s: list(s.spaces),
    "Sequence": lambda s: [s.feature_space, bool(s.stack)],
    "Graph": lambda s: [s.node_space, s.edge_space],
    "OneOf": lambda s: list(s.spaces),
}

_BUILDERS: dict[str, Callable[..., Any]] = {
    "Box": lambda g, *parameters: _box(g, *parameters),
    "Discrete": lambda g, n, start, dtype: _discrete(g, n, start, dtype),
    "MultiDiscrete": lambda g, nvec, start, dtype: g.MultiDiscrete(nvec, dtype=dtype, start=start),
    "MultiBinary": lambda g, n: g.MultiBinary(n),
    "Text": lambda g, low, high, chars: g.Text(high, min_length=low, charset=chars),
    "Dict": lambda g, *items: g.Dict(OrderedDict(items)),  # a dict's keys would be sorted
    "Tuple": lambda g, *inner: g.Tuple(inner),
    "Sequence": lambda g, inner, stack: g.Sequence(inner, stack=stack is True),
    "Graph": lambda g, node, edge: g.Graph(node, edge),
    "OneOf": lambda g, *inner: g.OneOf(inner),
}


def _box(g: Any, low: Any, high: Any, dtype: str, below: Any, above: Any) -> Any:
    """Make a Box; the bounds of an integer one no longer tell which of them were infinite."""
    box = g.Box(low, high, dtype=np.dtype(dtype))
    if below.shape != box.shape or above.shape != box.shape:
        raise DecodeError("a box's bounds do not fit its shape")
    box.bounded_below, box.bounded_above = below, above
    return box


def _discrete(g: Any, n: int, start: int, dtype: str) -> Any:
    if dtype == "<i8":  # as it always was before Gymnasium 1.1
        return g.Discrete(n, start=start)
    return g.Discrete(n, start=start, dtype=np.dtype(dtype))
