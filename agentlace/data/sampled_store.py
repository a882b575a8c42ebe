"""What all stores that can be sampled have in common: they count, and tell who waits for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Any, NamedTuple

import numpy as np

from agentlace.data.data_store import DataStoreBase
from agentlace.data.prefetch import Prefetch
from agentlace.data.rate_limiter import RateLimiter
from agentlace.forks import freed_by_fork


class Part(NamedTuple):
    """Consecutive rows of a store, for a snapshot.

    Attributes:
        columns: a tree of arrays that :meth:`SampledStore.absorb_rows` takes.
        first: number of the first row.
        end: the number after the last.
        settled: rows from this number on may still change.
        newest: the number after the newest row.
        state: all else that makes up the store at its row ``end``: plain values, of which
            ``begin`` is the first row that is needed.
        arrays: what may change of rows long after they came, or is not among the rows, as a tree
            of arrays that :meth:`SampledStore.absorb_arrays` takes; or None.
    """

    columns: Any
    first: int
    end: int
    settled: int
    newest: int
    state: dict[str, Any]
    arrays: Any = None


class SampledStore(DataStoreBase):
    """A store that one thread may sample while another inserts.

    Attributes:
        capacity: in transitions.
        preloaded: of :attr:`inserted`, how many were loaded in advance, such as demonstrations;
            a rate limiter does not count them.
        sampled: how many transitions were drawn so far.
    """

    _rng: np.random.Generator

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        if capacity <= 0:
            raise ValueError(f"capacity={capacity} must be positive")
        self.preloaded = 0
        self.sampled = 0
        self._writing = freed_by_fork(Lock())
        self._drawing = freed_by_fork(Lock())
        self._changed = freed_by_fork(Condition(Lock()))

    @property
    def inserted(self) -> int:
        """Return the number of transitions that were ever inserted."""
        raise NotImplementedError

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Return a batch; see each store."""
        raise NotImplementedError

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
        """Return an endless iterator over batches that are sampled in the background.

        Args:
            sample_args: arguments of :meth:`sample`, such as ``{"batch_size": 256}``.
            queue_size: so many batches are kept ready.
            device: a JAX device or sharding that batches are moved to; numpy if None.
            pack_obs_and_next_obs: join the frames of observations and next observations.
            limiter: lets samples through; as fast as they are asked for if None.
            transform: called with each batch after it was moved, in the background.
            timeout_s: of the limiter; waits without end if None.
        """
        packing = {"pack_obs_and_next_obs": True} if pack_obs_and_next_obs else {}
        args = {**sample_args, **packing}
        return Prefetch(self, args, queue_size, device, limiter, transform, timeout_s)

    @contextmanager
    def preloading(self) -> Iterator[None]:
        """Count what is inserted inside of this context as :attr:`preloaded`."""
        before = self.inserted
        try:
            yield
        finally:
            self.preloaded += self.inserted - before

    def cut(self) -> Part:
        """Return the state of this moment, and the few rows of it that may still change.

        Together with :meth:`export_rows` up to the first of them it is the store as it is now,
        whatever is inserted meanwhile. Inserts wait for microseconds, and for a copy of its
        ``arrays`` if it has any.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be saved in parts")

    def export_rows(self, begin: int, nbytes: int, until: int | None = None) -> Part:
        """Return rows from a number on, about so many bytes; inserts wait meanwhile.

        Args:
            begin: number of the first row, if it is still there.
            nbytes: so much is wanted; one row at least comes.
            until: rows from this number on are left out; none if None.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be saved in parts")

    def absorb_arrays(self, arrays: Any) -> None:
        """Take over the arrays of a cut, after all rows."""
        raise NotImplementedError(f"{type(self).__name__} has only rows")

    def begin_restore(self, state: Mapping[str, Any]) -> None:
        """Let an empty store begin at the first row of a snapshot."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved in parts")

    def absorb_rows(self, columns: Any, part: slice) -> None:
        """Insert a part of exported rows."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved in parts")

    def end_restore(self, state: Mapping[str, Any]) -> None:
        """Take over what else a snapshot holds, after all its rows."""
        self.preloaded = state["preloaded"]
        with self._drawing:
            self._rng.bit_generator.state = state["rng"]

    def _common_state(self) -> dict[str, Any]:
        with self._drawing:
            rng = self._rng.bit_generator.state
        return {"preloaded": self.preloaded, "rng": rng}

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition on this store holds, looking after each insert.

        Returns:
            Whether it holds; False when the time is over.
        """
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def _announce(self) -> None:
        """Wake those who wait for more; called after rows were inserted."""
        with self._changed:
            self._changed.notify_all()
