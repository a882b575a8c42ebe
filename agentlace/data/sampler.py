"""Samplers: what a sample of a trajectory buffer holds for the rows that were drawn.

A sampler only computes which rows to read, on the host, from the drawn rows and the bounds of
their trajectories. So a buffer in numpy and one in JAX return the same for the same rows.
Rows outside of the trajectory are masked, and padded with the trajectory's first or last row.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from agentlace.data.draw import Draw, Sampler
from agentlace.data.priority_sampler import PrioritySampler

__all__ = ["FutureSampler", "LatestSampler", "PrioritySampler", "Sampler", "SequenceSampler"]


class LatestSampler(Sampler):
    """The drawn row itself: data of shape (n, ...), mask bool (n,)."""

    def sample(self, draw: Draw, name: str) -> tuple[Any, Any]:
        """Return the source at the drawn rows, and whether these may be sampled."""
        return draw.fetch(self.source or name, draw.rows), draw.valid()


class SequenceSampler(Sampler):
    """Rows around the drawn one, such as a history (-3, 1) or a chunk of actions (0, 8).

    Data of shape (n, end - begin, ...), mask bool (n, end - begin).

    Args:
        squeeze: drop the dimension of time, which must be 1.
        begin: first row, relative to the drawn one.
        end: row after the last, relative to the drawn one.
        source: see :class:`Sampler`.

    Raises:
        ValueError: nothing between ``begin`` and ``end``, or more than one row to squeeze.
    """

    def __init__(
        self, squeeze: bool = False, begin: int = 0, end: int = 1, source: str | None = None
    ) -> None:
        super().__init__(source)
        if end <= begin:
            raise ValueError(f"a sequence from {begin} to {end} is empty")
        if squeeze and end - begin != 1:
            raise ValueError(f"cannot squeeze a sequence of {end - begin} rows")
        self.squeeze = squeeze
        self.reach = min(0, begin)
        self._offsets = np.arange(begin, end)

    def sample(self, draw: Draw, name: str) -> tuple[Any, Any]:
        """Return the sequences, padded at the trajectory's ends, and what is not padding."""
        rows = draw.rows[:, None] + self._offsets
        return draw.access(self.source or name, rows[:, 0] if self.squeeze else rows)


class FutureSampler(Sampler):
    """A later row of the same trajectory, or the drawn one: a goal for hindsight relabeling.

    Data is a dict of ``data``, of shape (n, ...), and ``offset``, how many rows later, int64 of
    shape (n,); the mask is a dict of the same keys, bool (n,).

    Args:
        distribution: UNIFORM over the rows up to the trajectory's end or before ``max_future``;
            EXPONENTIAL with mean ``lambda_`` (rounded down), the last row standing for all after.
        max_future: uniform offsets are less than this, if it is given.
        lambda_: mean offset of the exponential distribution, in rows.
        source: see :class:`Sampler`.

    Raises:
        ValueError: a maximum that is not positive, or an exponential without a positive mean.
    """

    class Distribution(IntEnum):
        """How the offset is distributed."""

        UNIFORM = 0
        EXPONENTIAL = 1

    def __init__(
        self,
        distribution: Distribution = Distribution.UNIFORM,
        max_future: int | None = None,
        lambda_: float | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(source)
        self.distribution = self.Distribution(distribution)
        if max_future is not None and max_future < 1:
            raise ValueError(f"max_future={max_future} must be positive")
        if self.distribution is self.Distribution.EXPONENTIAL and not (lambda_ and lambda_ > 0):
            raise ValueError(f"an exponential distribution needs a positive lambda_, not {lambda_}")
        self.max_future = max_future
        self.lambda_ = lambda_

    def sample(self, draw: Draw, name: str) -> tuple[Any, Any]:
        """Return rows of the future, and how far away they are."""
        left = np.maximum(draw.bounds[1] - draw.rows, 1)
        if self.distribution is self.Distribution.UNIFORM:
            limit = left if self.max_future is None else np.minimum(left, self.max_future)
            offset = draw.rng.integers(limit)
        else:
            assert self.lambda_ is not None
            far = draw.rng.exponential(self.lambda_, len(left))
            offset = np.minimum(far, left - 1).astype(np.int64)
        data, mask = draw.access(self.source or name, draw.rows + offset)
        return {"data": data, "offset": draw.put(offset)}, {"data": mask, "offset": mask}
