"""A sum tree: draw positions in proportion to their values, change values, all in O(log n)."""

from __future__ import annotations

import numpy as np

from agentlace.data.columns import Array


class SumTree:
    """Values of ``capacity`` positions and their sums, in one array. Not thread-safe.

    Node ``i`` is the sum of nodes ``2 i`` and ``2 i + 1``; node 1 is the total, the leaves are
    the second half. All operations work on arrays of positions at once.
    """

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << max(0, capacity - 1).bit_length()
        self._nodes = np.zeros(2 * self._leaves, np.float64)

    @property
    def total(self) -> float:
        """Return the sum of all values."""
        return float(self._nodes[1])

    def __getitem__(self, positions: Array) -> Array:
        """Return a copy of the values at these positions."""
        values: Array = self._nodes[self._leaves + positions]
        return values

    def __setitem__(self, positions: Array, values: Array | float) -> None:
        """Set values, which must not be negative; of equal positions the last counts."""
        nodes = self._leaves + np.asarray(positions, np.int64)
        if not nodes.size:
            return
        self._nodes[nodes] = values
        while nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, targets: Array) -> Array:
        """Return for each target the position at which the running sum of values passes it.

        Args:
            targets: float64 of shape (n,), each in [0, total).

        Returns:
            Positions, int64 of shape (n,); never one whose value is 0, unless all are.
        """
        nodes, targets = np.ones(len(targets), np.int64), targets.copy()
        while nodes.size and nodes[0] < self._leaves:
            left, right = self._nodes[2 * nodes], self._nodes[2 * nodes + 1]
            # Rounding may leave a target at the very end: a side that sums to 0 is never taken.
            go_right = (targets >= left) & (right > 0)
            targets -= np.where(go_right, left, 0.0)
            nodes = 2 * nodes + go_right
        return nodes - self._leaves
