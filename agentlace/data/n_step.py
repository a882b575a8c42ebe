"""n-step returns, which stop at the trajectory's end and bootstrap unless it terminated."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.data.draw import Draw, Sampler


class NStepSampler(Sampler):
    """The return over the next n rows, and from where to bootstrap it.

    The target of a value function is ``rewards + discounts * V(next_observations)``. The sum
    runs to the first termination (a mask of 0), to the trajectory's end, or over n rows. Where
    it stops at a termination ``discounts`` is 0; where a time limit cut the trajectory, or the
    newest row is reached, it bootstraps from the last row's next observation with that many
    powers of the discount.

    Data is a dict of ``rewards`` (float32 (n,)), ``discounts`` (float32 (n,)), ``steps``
    (int64 (n,), how many rewards were summed) and ``next_observations`` (n, ...); the mask is a
    dict of the same keys, bool (n,).

    Args:
        n: number of rewards that are summed at most.
        discount: per row, in [0, 1].
        rewards: name of the rewards, of shape () per row.
        masks: name of the masks: 0 where the episode terminated, 1 elsewhere.
        next_observations: name of the observations to bootstrap from.

    Raises:
        ValueError: n is not positive, or the discount is not in [0, 1].
    """

    def __init__(
        self,
        n: int,
        discount: float,
        rewards: str = "rewards",
        masks: str = "masks",
        next_observations: str = "next_observations",
    ) -> None:
        super().__init__()
        if n < 1 or not 0 <= discount <= 1:
            raise ValueError(f"n={n} must be positive and discount={discount} in [0, 1]")
        self._offsets = np.arange(n)
        self._powers = float(discount) ** np.arange(n + 1)
        self._names = rewards, masks, next_observations

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names of rewards, masks and next observations."""
        return self._names

    def sample(self, draw: Draw, name: str) -> tuple[Any, Any]:
        """Return returns, and what to bootstrap them from."""
        rewards_name, masks_name, next_name = self._names
        rewards, there = draw.access(rewards_name, draw.rows[:, None] + self._offsets)
        alive = np.asarray(draw.access(masks_name, draw.rows[:, None] + self._offsets)[0]) != 0
        steps = _steps(alive, there)
        summed = self._offsets < steps[:, None]
        returns = (np.asarray(rewards) * summed) @ self._powers[:-1]
        last = np.maximum(steps - 1, 0)
        goes_on = np.take_along_axis(alive, last[:, None], axis=1)[:, 0]
        data = {
            "rewards": draw.put(returns.astype(np.float32)),
            "discounts": draw.put((goes_on * self._powers[steps]).astype(np.float32)),
            "steps": draw.put(steps),
            "next_observations": draw.access(next_name, draw.rows + last)[0],
        }
        return data, dict.fromkeys(data, there[:, 0])


def _steps(alive: Array, there: Array) -> Array:
    """Return how many rows count: those of the trajectory, up to the first termination."""
    before_alive = np.cumprod(alive, axis=1, dtype=np.int64)
    before_alive = np.concatenate([np.ones_like(before_alive[:, :1]), before_alive[:, :-1]], 1)
    steps: Array = (before_alive * there).sum(axis=1)
    return steps
