"""What every sampler has in common, and what it is given: the rows that were drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from agentlace.data.columns import Array


class Draw:
    """Rows that were drawn from a buffer.

    Attributes:
        rows: their numbers, int64 of shape (n,).
        rng: for samplers that draw more.
        fetch: returns what a source holds at rows of any shape: an array, or a tree of them.
        put: moves a numpy array to where fetched ones are.
        inside: whether all rows are known to be inside of their trajectories.
    """

    def __init__(
        self,
        rows: Array,
        bounds: Callable[[], tuple[Array, Array]],
        rng: np.random.Generator,
        fetch: Callable[[str, Array], Any],
        put: Callable[[Array], Any],
        inside: bool,
    ) -> None:
        self.rows = rows
        self.rng = rng
        self.fetch = fetch
        self.put = put
        self.inside = inside
        self._bounds = bounds

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """First row of each one's trajectory, and the row after its last; int64 of shape (n,)."""
        return self._bounds()

    def valid(self) -> Array:
        """Return which of the drawn rows are in their trajectories, bool of shape (n,)."""
        if self.inside:
            return np.ones(len(self.rows), np.bool_)
        begin, end = self.bounds
        valid: Array = (self.rows >= begin) & (self.rows < end)
        return valid

    def access(self, source: str, rows: Array) -> tuple[Any, Array]:
        """Return a source at rows of shape (n,) or (n, time), and which are in the trajectory."""
        begin, end = self.bounds
        if rows.ndim > 1:
            begin, end = begin[:, None], end[:, None]
        data = self.fetch(source, np.maximum(np.minimum(rows, end - 1), begin))
        return data, (rows >= begin) & (rows < end)


class Sampler:
    """Base of all samplers.

    Args:
        source: name of what it reads; None stands for the name under which it is registered.

    Attributes:
        reach: the furthest it reads before the drawn row: 0, or a negative number of rows.
    """

    reach = 0

    def __init__(self, source: str | None = None) -> None:
        self.source = source

    def sources(self, name: str) -> tuple[str, ...]:
        """Return what it reads, if it is registered under this name."""
        return (self.source or name,)

    def sample(self, draw: Draw, name: str) -> tuple[Any, Any]:
        """Return data and mask, each an array or a tree of them with leading dimension n.

        Args:
            draw: the rows that were drawn, which are the same for all samplers of a config.
            name: the name under which it is registered.
        """
        raise NotImplementedError
