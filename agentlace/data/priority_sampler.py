"""Rows in proportion to their priorities, and the weights that correct for it."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.data.draw import Draw, Sampler
from agentlace.data.sum_tree import SumTree
from agentlace.forks import freed_by_fork


class PrioritySampler(Sampler):
    """Rows in proportion to their priorities (Schaul et al. 2016, arXiv:1511.05952).

    In a config that holds one, it decides which rows are drawn for all of its samplers. New
    rows get the highest priority that any row ever had. Data is a dict of ``indices`` (int64),
    ``weights`` (float32, importance weights over the largest of them) and, if it has a source,
    ``data``; the mask is a dict of the same keys. Thread-safe.

    Args:
        priorities: of the buffer's first rows, float of shape (n,); rows beyond get 1.
        alpha: exponent of priorities; 0 draws uniformly.
        beta: exponent of the importance weights; 1 corrects the bias wholly. Settable.
        source: see :class:`Sampler`.

    Raises:
        ValueError: a negative priority or exponent, or a priority that is not finite.
    """

    def __init__(
        self,
        priorities: Any = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        source: str | None = None,
    ) -> None:
        super().__init__(source)
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")
        self.alpha = alpha
        self.beta = beta
        self._given = _checked([] if priorities is None else priorities)
        self._largest = float(self._given.max(initial=0.0)) or 1.0
        self._lock = freed_by_fork(Lock())
        self._tree: SumTree | None = None
        self._capacity = 0
        self._range = (0, 0)

    def sources(self, name: str) -> tuple[str, ...]:
        """Return its source, if it has one."""
        return () if self.source is None else (self.source,)

    def follow(self, span: tuple[int, int], capacity: int) -> None:
        """Take in which rows of a buffer may be drawn now: [begin, end)."""
        with self._lock:
            if self._tree is None:
                self._tree, self._capacity = SumTree(capacity), capacity
            (begin, end), (new_begin, new_end) = self._range, span
            self._range = (new_begin, max(new_end, new_begin))
            for gone in (range(begin, min(end, new_begin)), range(max(begin, new_end), end)):
                self._tree[np.arange(gone.start, gone.stop) % capacity] = 0.0
            new = np.arange(max(end, new_begin), new_end)
            self._tree[new % capacity] = self._first_priorities(new) ** self.alpha

    def _first_priorities(self, rows: Array) -> Array:
        first = np.full(len(rows), self._largest)
        known = rows < len(self._given)
        first[known] = self._given[rows[known]]
        return first

    def draw(self, size: int, rng: np.random.Generator) -> Array:
        """Return the numbers of ``size`` rows, one from each of ``size`` equal shares."""
        with self._lock:
            assert self._tree is not None
            if not self._tree.total > 0:
                raise ValueError("cannot sample: the priorities of all rows are 0")
            shares = (np.arange(size) + rng.random(size)) / size
            positions = self._tree.find(shares * self._tree.total)
            begin = self._range[0]
            rows: Array = begin + (positions - begin) % self._capacity
            return rows

    def update_priorities(self, indices: Any, priorities: Any) -> None:
        """Set the priorities of rows; those that have left the buffer meanwhile are skipped.

        Args:
            indices: as they were sampled, int of shape (n,).
            priorities: not negative, float of shape (n,); absolute TD errors, say.

        Raises:
            ValueError: a priority that is negative or not finite; nothing was changed.
        """
        rows, values = np.asarray(indices).astype(np.int64), _checked(priorities)
        rows, values = np.broadcast_arrays(rows, values)
        with self._lock:
            there = (rows >= self._range[0]) & (rows < self._range[1])
            self._largest = max(self._largest, float(values[there].max(initial=0.0)))
            if self._tree is not None:
                self._tree[rows[there] % self._capacity] = values[there] ** self.alpha

    def sample(self, draw: Draw, name: str) -> tuple[Any, Any]:
        """Return the drawn rows' numbers and importance weights."""
        data = {"indices": draw.put(draw.rows), "weights": draw.put(self._weights(draw.rows))}
        if self.source is not None:
            data["data"] = draw.fetch(self.source, draw.rows)
        return data, dict.fromkeys(data, draw.valid())

    def _weights(self, rows: Array) -> Array:
        with self._lock:
            assert self._tree is not None
            values, total = self._tree[rows % self._capacity], self._tree.total
            count = self._range[1] - self._range[0]
        shares = np.maximum(values / max(total, np.finfo(float).tiny), np.finfo(float).tiny)
        weights: Array = (shares * max(count, 1)) ** -self.beta
        return np.asarray(weights / weights.max(initial=0.0), np.float32)

    def state(self) -> dict[str, Array]:
        """Return what :meth:`restore` needs, as arrays."""
        with self._lock:
            span = np.array(self._range)
            rows = np.arange(*self._range)
            tree = np.zeros(0) if self._tree is None else self._tree[rows % self._capacity]
            return {"range": span, "powers": tree, "largest": np.array(self._largest)}

    def restore(self, state: dict[str, Array], capacity: int) -> None:
        """Take over the priorities that :meth:`state` returned."""
        with self._lock:
            begin, end = map(int, state["range"])
            self._tree, self._capacity, self._range = SumTree(capacity), capacity, (begin, end)
            self._tree[np.arange(begin, end) % capacity] = state["powers"]
            self._largest = float(state["largest"])


def _checked(priorities: Any) -> Array:
    values = np.asarray(priorities, np.float64)
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise ValueError("priorities must be finite and not negative")
    return values
