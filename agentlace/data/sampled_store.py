"""What all stores that can be sampled have in common: they count, and tell who waits for more."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition, Lock
from typing import Any

from agentlace.data.data_store import DataStoreBase


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
