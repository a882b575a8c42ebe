"""What to do at a tick for which several action chunks have an action."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Blend(Protocol):
    """Makes one action of several for the same tick."""

    def __call__(self, actions: Array, ages: Array) -> Array:
        """Return the action.

        Args:
            actions: of shape (k, ...), that of the newest chunk first; k is at least 1.
            ages: int64 of shape (k,), ticks since the observation that each was made from.
        """
        ...


class Latest:
    """The action of the chunk with the newest observation."""

    def __call__(self, actions: Array, ages: Array) -> Array:
        """Return the first action."""
        newest: Array = actions[0]
        return newest


class WeightedAverage:
    """An average in which newer chunks weigh more: ``exp(-decay * age)``.

    Args:
        decay: per tick; 0 weighs all the same.
    """

    def __init__(self, decay: float = 0.1) -> None:
        if not decay >= 0:
            raise ValueError(f"decay={decay} must not be negative")
        self.decay = decay

    def __call__(self, actions: Array, ages: Array) -> Array:
        """Return the average."""
        return _average(actions, np.exp(-self.decay * (ages - ages[0])))


class TemporalEnsemble:
    """An average in which older chunks weigh more: ``exp(-m * i)``, where the oldest has i = 0.

    Source: Zhao et al. 2023, Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware,
    arXiv:2304.13705, section IV.

    Args:
        m: the smaller, the faster new observations come in.
    """

    def __init__(self, m: float = 0.01) -> None:
        if not m >= 0:
            raise ValueError(f"m={m} must not be negative")
        self.m = m

    def __call__(self, actions: Array, ages: Array) -> Array:
        """Return the average."""
        return _average(actions, np.exp(-self.m * np.arange(len(ages) - 1, -1, -1)))


def _average(actions: Array, weights: Array) -> Array:
    """Return the weighted average over the first dimension, of the actions' dtype."""
    mean = np.tensordot(weights / weights.sum(), actions.astype(np.float64), axes=1)
    return np.asarray(mean).astype(actions.dtype)
