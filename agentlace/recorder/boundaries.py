"""Where an episode ends, as transitions tell it that carry no marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.data.ends import ending_of
from agentlace.rlds.episode import Ending

MIN_TRUST = 0.5
"""Where fewer next observations than this continue, they tell nothing about episodes."""


def told_ending(row: Any) -> Ending | None:
    """Return how an episode ends with this transition, if that tells it; else None."""
    try:
        return ending_of(row) if isinstance(row, Mapping) else None
    except (TypeError, ValueError):  # ragged lists, and the like
        return None


def is_same(one: Any, other: Any) -> bool:
    """Whether two trees of values are the same, bit by bit; NaN is the same as NaN."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, np.ndarray | np.generic):
        return _is_same_array(np.asarray(one), np.asarray(other))
    return bool(one == other) or (one != one and other != other)


def _is_same_array(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.ctypes.data == other.ctypes.data and one.strides == other.strides:
        return True  # a frame that the chunk holds once
    if one.dtype.kind in "biuSUmM":
        return bool(np.array_equal(one, other))
    return one.tobytes() == other.tobytes()


class Continuity:
    """Whether next observations that do not continue tell that an episode has ended.

    In most programs each transition's next observation is the following one's observation, but
    where an environment was reset. In some they never are (n-step returns, skipped frames): there
    they tell nothing. So they are trusted as long as most of them continue.

    Attributes:
        kept: next observations that continued.
        broken: those that did not, where nothing else said that an episode had ended.
    """

    def __init__(self, kept: int = 0, broken: int = 0) -> None:
        self.kept = kept
        self.broken = broken

    def note(self, continues: bool) -> bool:
        """Take note of one more; returns whether an episode has ended there."""
        if continues:
            self.kept += 1
            return False
        self.broken += 1
        return self.kept > 0 and self.kept >= MIN_TRUST * (self.kept + self.broken)
