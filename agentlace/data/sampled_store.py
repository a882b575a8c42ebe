"""What all stores that can be sampled have in common: they count, and tell who waits for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Any

from agentlace.data.data_store import DataStoreBase
from agentlace.data.prefetch import Prefetch
from agentlace.data.rate_limiter import RateLimiter


class SampledStore(DataStoreBase):
    """A store that one thread may sample while another inserts.

    Attributes:
        capacity: in transitions.
        preloaded: of :attr:`inserted`, how many were loaded in advance, such as demonstrations;
            a rate limiter does not count them.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        if capacity <= 0:
            raise ValueError(f"capacity={capacity} must be positive")
        self.preloaded = 0
        self._writing = Lock()
        self._drawing = Lock()
        self._changed = Condition(Lock())

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
        yield
        self.preloaded += self.inserted - before

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
