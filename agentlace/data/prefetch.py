"""Batches that are sampled, and moved to a device, before they are asked for."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from threading import Condition, Thread
from typing import Any

from agentlace.data.rate_limiter import SLICE_S, RateLimiter
from agentlace.errors import Closed, MissingExtra
from agentlace.forks import check_process, freed_by_fork, process_number

JOIN_S = 5.0
"""So long ``close`` waits for the thread, which may be in the midst of a sample."""


class Prefetch(Iterator[Any]):
    """An endless iterator over batches of a store, which one thread samples in the background.

    ``next`` waits for a batch. What goes wrong in the thread is raised there, after the batches
    that are ready. It ends when it is closed, or when nobody refers to it any more; also a
    context manager.

    Args:
        store: a store, or a mixture of several.
        sample_args: arguments of the store's ``sample``; has ``batch_size``.
        queue_size: so many batches are kept ready.
        device: a JAX device or sharding that batches are moved to; numpy if None.
        limiter: lets samples through; as fast as they are asked for if None.
        transform: called with each batch in the thread, after it was moved; returns what
            ``next`` returns. For data augmentation, say.
        timeout_s: of the limiter; waits without end if None.

    Raises:
        ValueError: no queue.
        MissingExtra: a device is given and JAX is not installed.
    """

    def __init__(
        self,
        store: Any,
        sample_args: Mapping[str, Any],
        queue_size: int = 2,
        device: Any = None,
        limiter: RateLimiter | None = None,
        transform: Callable[[Any], Any] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        if queue_size < 1:
            raise ValueError(f"queue_size={queue_size} must be positive")
        args = dict(sample_args)
        put = None if device is None else _putting_on(device)
        # The thread must not refer to the iterator, else it would never be dropped.
        self._queue = queue = _Queue(queue_size)

        def make() -> Any:
            if limiter is not None:
                limiter.wait(store, args["batch_size"], timeout_s, lambda: queue.closed)
            batch = store.sample(**args)
            if put is not None:
                batch = put(batch)
            return batch if transform is None else transform(batch)

        self._made_in = process_number()
        self._thread = Thread(target=_fill, args=(queue, make), name="prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, queue.drop)
        self._thread.start()

    def __next__(self) -> Any:
        """Return the next batch, waiting for it if need be.

        Raises:
            Closed: the iterator was closed, or made by the parent of this process: its thread is
                only there.
            Exception: whatever went wrong in the thread.
        """
        check_process(self._made_in, "this iterator")
        return self._queue.get()

    def close(self) -> None:
        """Stop sampling; batches that are ready are dropped. Idempotent."""
        self._queue.close()
        self._thread.join(JOIN_S)

    def __enter__(self) -> Prefetch:
        """Return the iterator."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the iterator."""
        self.close()


class _Queue:
    """Between the thread and its iterator: batches, and then perhaps a failure."""

    def __init__(self, size: int) -> None:
        self.closed = False
        self._size = size
        self._batches: deque[Any] = deque()
        self._failure: BaseException | None = None
        self._changed = freed_by_fork(Condition())

    def put(self, batch: Any) -> None:
        """Add a batch, once there is room."""
        with self._changed:
            while len(self._batches) >= self._size and not self.closed:
                self._changed.wait(SLICE_S)  # drop() does not notify
            self._batches.append(batch)
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Say why there will be no more."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def get(self) -> Any:
        """Return the oldest batch, once there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._failure or self.closed)
            if self.closed:
                raise Closed("the iterator was closed")
            if self._batches:
                self._changed.notify_all()
                return self._batches.popleft()
            assert self._failure is not None
            raise self._failure

    def close(self) -> None:
        """End both sides' waiting."""
        with self._changed:
            self.closed = True
            self._batches.clear()
            self._changed.notify_all()

    def drop(self) -> None:
        """Let the thread end soon. Takes no lock: the garbage collector may call it anywhere."""
        self.closed = True


def _fill(queue: _Queue, make: Callable[[], Any]) -> None:
    try:
        while not queue.closed:
            queue.put(make())
    except BaseException as failure:
        queue.fail(failure)


def _putting_on(device: Any) -> Callable[[Any], Any]:
    try:
        import jax
    except ImportError as error:
        raise MissingExtra("jax", "jax") from error

    def put(batch: Any) -> Any:
        return jax.device_put(batch, device)

    return put
