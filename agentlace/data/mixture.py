"""Batches that are mixed from several stores, such as online data and demonstrations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agentlace.data.columns import leaves_of, map_leaves
from agentlace.data.prefetch import Prefetch
from agentlace.data.rate_limiter import RateLimiter
from agentlace.data.ring import joined_rows
from agentlace.errors import SchemaMismatch

SLICE_S = 0.05
"""So long it listens to one store before it looks at all."""


class Mixture:
    """Samples several stores in fixed shares, as RLPD does (Ball et al. 2023, arXiv:2302.02948).

    Args:
        shares: of each batch, by name; they sum up to 1.
        stores: by the same names. Their transitions must have the same leaves.
        min_sizes: by name, how many transitions a store must hold before it gives any, such as
            one of interventions, which may come late or never. Until then the others take its
            share, in proportion to theirs. Stores without one give from the first sample on.

    Raises:
        ValueError: the names differ, or the shares are negative or do not sum up to 1.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        stores: Mapping[str, Any],
        min_sizes: Mapping[str, int] | None = None,
    ) -> None:
        if shares.keys() != stores.keys():
            raise ValueError(f"shares for {sorted(shares)}, but stores {sorted(stores)}")
        if min(shares.values(), default=0) < 0 or not math.isclose(sum(shares.values()), 1):
            raise ValueError(f"shares {dict(shares)} must not be negative and sum up to 1")
        self.shares = dict(shares)
        self.stores = dict(stores)
        self.min_sizes = dict(min_sizes or {})
        if not self.min_sizes.keys() <= shares.keys():
            raise ValueError(f"min_sizes for {sorted(self.min_sizes)}, but stores {sorted(stores)}")

    @property
    def inserted(self) -> int:
        """Return the number of transitions that were ever inserted into all stores."""
        return sum(store.inserted for store in self.stores.values())

    @property
    def preloaded(self) -> int:
        """Return how many of them were loaded in advance."""
        return sum(store.preloaded for store in self.stores.values())

    def __len__(self) -> int:
        """Return the number of transitions in all stores."""
        return sum(len(store) for store in self.stores.values())

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition on the stores holds; return whether it does."""
        slices = range(math.ceil(timeout_s / SLICE_S))
        for _, store in zip(slices, itertools.cycle(self.stores.values()), strict=False):
            if store.wait_until(condition, min(SLICE_S, timeout_s)):
                return True
        return condition()

    def counts(self, batch_size: int) -> dict[str, int]:
        """Return how many of a batch each store gives: its share, the largest rests rounded up.

        Raises:
            ValueError: no store with a share holds enough.
        """
        sizes = {name: len(self.stores[name]) for name in self.min_sizes}
        small = {name for name, size in sizes.items() if size < self.min_sizes[name]}
        shares = {name: 0 if name in small else share for name, share in self.shares.items()}
        given = sum(shares.values())
        if not given:
            missing = [f"{name} {sizes[name]:,} of {self.min_sizes[name]:,}" for name in sizes]
            raise ValueError(f"no store holds enough transitions: {', '.join(missing)}")
        exact = {name: share / given * batch_size for name, share in shares.items()}
        counts = {name: math.floor(count + 1e-9) for name, count in exact.items()}
        rests = sorted(exact, key=lambda name: counts[name] - exact[name])
        for name in rests[: batch_size - sum(counts.values())]:
            counts[name] += 1
        return counts

    def sample(self, batch_size: int, **sample_args: Any) -> Any:
        """Return a batch: the first store's part, then the second's, and so on.

        Args:
            batch_size: number of transitions.
            sample_args: further arguments for each store's ``sample``.

        Raises:
            ValueError: a store is empty, though it must give some; it is named.
            SchemaMismatch: the stores' transitions differ in a leaf.
        """
        parts = {}
        for name, count in self.counts(batch_size).items():
            if count:
                try:
                    parts[name] = self.stores[name].sample(batch_size=count, **sample_args)
                except ValueError as error:
                    raise ValueError(f"store {name!r}: {error}") from error
        _check_alike(parts)
        return map_leaves(_joined, *parts.values())

    def get_iterator(
        self,
        sample_args: Mapping[str, Any],
        queue_size: int = 2,
        device: Any = None,
        pack_obs_and_next_obs: bool = False,
        limiter: RateLimiter | None = None,
        transform: Callable[[Any], Any] | None = None,
        timeout_s: float | None = None,
    ) -> Prefetch:
        """Return an iterator over batches that are sampled in the background; see Prefetch."""
        packing = {"pack_obs_and_next_obs": True} if pack_obs_and_next_obs else {}
        args = {**sample_args, **packing}
        return Prefetch(self, args, queue_size, device, limiter, transform, timeout_s)


def _joined(*parts: Any) -> Any:
    if all(isinstance(part, np.ndarray) for part in parts):
        return joined_rows(parts)
    import jax

    return jax.numpy.concatenate(parts)


def _check_alike(parts: Mapping[str, Any]) -> None:
    kinds = {
        name: {path: (leaf.shape[1:], str(leaf.dtype)) for path, leaf in leaves_of(part)}
        for name, part in parts.items()
    }
    first, *others = kinds
    for other in others:
        for path in sorted(kinds[first].keys() | kinds[other].keys()):
            mine, theirs = kinds[first].get(path), kinds[other].get(path)
            if mine != theirs:
                raise SchemaMismatch(path, f"{mine} in {first!r}, {theirs} in {other!r}")
