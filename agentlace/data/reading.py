"""One sample of a trajectory buffer: drawing rows, reading them, noticing that they are torn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace.data.columns import Array, map_leaves
from agentlace.data.draw import Draw, Sampler
from agentlace.data.episodes import Episodes
from agentlace.data.priority_sampler import PrioritySampler

DRAW_ATTEMPTS = 64
"""So often rows that are too close to a trajectory's end are drawn again, before they are moved."""

Transform = Callable[[Any, Any], tuple[Any, Any]]
Range = tuple[int, int]


@dataclass
class SampleConfig:
    """How to sample.

    Attributes:
        samplers: by the names under which the sample will have what they return.
        range: (first, last + 1) of the rows around a drawn one that its trajectory must have.
        transform: makes the sample's data and mask of those of the samplers.
        reach: the furthest that any sampler reads before the drawn row, 0 or negative.
        priority: decides which rows are drawn; uniform if None.
    """

    samplers: Mapping[str, Sampler]
    range: Range
    transform: Transform | None

    def __post_init__(self) -> None:
        """Find out what follows from the samplers."""
        found = [s for s in self.samplers.values() if isinstance(s, PrioritySampler)]
        if len(found) > 1:
            raise ValueError("a sample config can hold only one PrioritySampler")
        self.priority = found[0] if found else None
        self.reach = min([s.reach for s in self.samplers.values()], default=0)


class Reading:
    """Draws and reads rows for one sample.

    Args:
        config: what to sample.
        episodes: which rows there are.
        fetch: see :class:`Draw`.
        put: see :class:`Draw`.
        rng: draws.
    """

    def __init__(
        self,
        config: SampleConfig,
        episodes: Episodes,
        fetch: Callable[[str, Array], Any],
        put: Callable[[Array], Any],
        rng: np.random.Generator,
    ) -> None:
        self._config, self._episodes = config, episodes
        self._fetch, self._put, self._rng = fetch, put, rng
        self._span = episodes.range
        self._lowest: Array = np.zeros(0, np.int64)
        # Every row has itself: nothing to look up.
        self._any_fits = config.range[0] >= 0 >= config.range[1] - 1

    def draw(self, size: int) -> Array:
        """Return the numbers of rows whose trajectories have the config's range around them.

        Raises:
            ValueError: no row may be sampled.
        """
        self._span = span = self._episodes.range
        if span[0] >= span[1]:
            raise ValueError("cannot sample: no trajectory in the buffer is long enough yet")
        rows = self._draw_any(size)
        if self._any_fits:
            return rows
        for _ in range(DRAW_ATTEMPTS):
            low, high = self._fitting(rows)
            misfits = np.flatnonzero((rows < low) | (rows > high))
            if not len(misfits):
                return rows
            rows[misfits] = self._draw_any(len(misfits))
        return self._moved(rows)

    def _draw_any(self, size: int) -> Array:
        if self._config.priority is None:
            return self._rng.integers(*self._span, size=size)
        self._config.priority.follow(self._span, self._episodes.capacity)
        return self._config.priority.draw(size, self._rng)

    def place(self, rows: Array) -> Array:
        """Return rows that somebody else has drawn, moved to where the config's range fits."""
        if self._config.priority is not None:
            self._config.priority.follow(self._span, self._episodes.capacity)
        return self._moved(rows)

    def _fitting(self, rows: Array) -> tuple[Array, Array]:
        """Return the first and the last row that may be drawn in the trajectories of rows."""
        begin, end = self._episodes.bounds(rows, self._span)
        return begin - self._config.range[0], end - self._config.range[1]

    def _moved(self, rows: Array) -> Array:
        low, high = self._fitting(rows)
        return np.minimum(np.maximum(rows, low), high)

    def read(self, rows: Array, inside: bool = True) -> tuple[Any, Any]:
        """Return what the samplers return for rows: a dict of data and one of masks."""
        draw = Draw(rows, lambda: self._bounds(rows), self._rng, self._fetch, self._put, inside)
        reach = self._config.reach
        # If a row was overwritten before its bounds were read, they are another trajectory's.
        lowest = rows if reach == 0 else np.maximum(rows + reach, draw.bounds[0])
        self._lowest = np.minimum(rows, lowest)
        samplers = self._config.samplers.items()
        results = {name: sampler.sample(draw, name) for name, sampler in samplers}
        data = {name: result[0] for name, result in results.items()}
        return data, {name: map_leaves(self._put, result[1]) for name, result in results.items()}

    def _bounds(self, rows: Array) -> tuple[Array, Array]:
        return self._episodes.bounds(rows, self._span)

    def is_torn(self, rows: Array) -> Array:
        """Return which of the rows that were just read may have been overwritten meanwhile."""
        torn: Array = self._lowest < self._episodes.claimed - self._episodes.capacity
        return torn
