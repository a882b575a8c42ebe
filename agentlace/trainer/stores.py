"""A trainer's stores, each filled from its streams by a consumer of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from agentlace.codec import Chunk
from agentlace.data.data_store import Refusals, put
from agentlace.errors import AgentlaceError
from agentlace.logs import Refrain, about
from agentlace.telemetry import Sample
from agentlace.trainer.checkpointer import Source
from agentlace.trainer.manifest import SavedStore
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.cursor import Lease
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import Retention, StreamId

log = logging.getLogger(__name__)

CONSUMER = "trainer"
"""Role of the trainer among the consumers of a stream."""

DataCallback = Callable[[str, dict[str, Any]], Any]
"""Called with a store's name and ``{"data": transitions, "last_id": int}`` after insertion."""


@dataclass
class Filled:
    """A store and how far it is filled.

    Attributes:
        store: takes the transitions.
        retention: how much the broker keeps of its streams.
        positions: last applied ID per actor.
        committed: last ID per actor that a checkpoint holds.
        counters: what the first consumer counts on from.
        consumer: the present one, or the one that was stopped last.
    """

    store: Any
    retention: Retention
    positions: dict[str, StreamId] = field(default_factory=dict)
    committed: dict[str, StreamId] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    consumer: Consumer | None = None
    is_consuming: bool = False

    def counted(self) -> dict[str, int]:
        """Return how many transitions were applied, rejected, or found missing."""
        c = self.consumer
        if c is None:
            return dict(self.counters)
        return {"applied": c.applied, "rejected": c.rejected, "missing": c.gaps}

    def hold(self, timeout_s: float) -> AbstractContextManager[None]:
        """Hold the consumer between two chunks; raises TimeoutError."""
        consumer = self.consumer
        return nullcontext() if consumer is None else consumer.between_entries(timeout_s)


class Stores:
    """The stores by name. Its owner holds a lock for all that starts or stops consumers.

    Args:
        keys: the trainer's.
        data_callback: called after each insertion, in the store's thread.
    """

    def __init__(self, keys: ServiceKeys, data_callback: DataCallback | None) -> None:
        self._keys = keys
        self._data_callback = data_callback
        self._filled: dict[str, Filled] = {}
        self._refrain = Refrain()

    def register(self, name: str, store: Any, retention: Retention) -> None:
        """Add a store, which is empty, or put it in another's place."""
        old = self._filled.get(name)
        if old is not None and old.consumer is not None:
            old.consumer.stop()
        self._filled[name] = Filled(store, retention)

    def get(self, name: str) -> Any:
        """Return the store of this name, None if there is none."""
        filled = self._filled.get(name)
        return None if filled is None else filled.store

    def names(self) -> set[str]:
        """Return the names of all stores."""
        return set(self._filled)

    def offers(self) -> dict[str, Any]:
        """Return what clients should know of the stores."""
        return {name: filled.retention.to_info() for name, filled in self._filled.items()}

    def consume(self, name: str, broker: Broker, lease: Lease, is_saved: bool) -> None:
        """Begin to fill a store.

        Args:
            name: of the store.
            broker: where its streams are.
            lease: the trainer's.
            is_saved: whether the streams must keep what no checkpoint holds yet.
        """
        filled = self._filled[name]
        before = filled.consumer
        if before is not None and before.is_applying:  # it would be read and applied once more
            raise AgentlaceError(f"store {name!r} is still taking a chunk of before stop()")

        def apply(actor: str, chunk: Chunk, last: StreamId) -> Refusals:
            return put(filled.store, chunk)

        def tell(actor: str, chunk: Chunk, last: StreamId, refused: Refusals) -> None:
            self._tell(name, chunk, last, refused)

        counted = filled.counted()
        consumer = Consumer(
            *(broker, self._keys, name, apply, f"{CONSUMER}:{lease.token}", filled.positions),
            lease=lease,
            on_applied=None if self._data_callback is None else tell,
            committed=filled.committed if is_saved else None,
        )
        consumer.applied = counted.get("applied", 0)
        consumer.rejected, consumer.gaps = counted.get("rejected", 0), counted.get("missing", 0)
        filled.consumer, filled.is_consuming = consumer, True
        consumer.start()

    def _tell(self, name: str, chunk: Chunk, last: StreamId, refused: Refusals) -> None:
        assert self._data_callback is not None
        rows = [row for i, row in enumerate(chunk.rows()) if i not in refused]
        try:
            self._data_callback(name, {"data": rows, "last_id": last.number})
        except (Exception, SystemExit) as error:  # an exit would end only this store's thread
            fields = about(self._keys.store(name).labels, error=error)
            text = "the data_callback for store %r raised"
            self._refrain.say(log.exception, error, text, name, extra=fields)

    def stop(self) -> None:
        """Stop to fill; chunks that are being inserted may finish first."""
        for filled in self._filled.values():
            if filled.consumer is not None and filled.is_consuming:
                filled.is_consuming = False
                filled.consumer.stop()

    def counters(self) -> dict[str, dict[str, int]]:
        """Return the counters of all stores that are being filled."""
        return {n: filled.counted() for n, filled in self._filled.items() if filled.is_consuming}

    def measure(self) -> Iterator[Sample]:
        """Yield what became of the transitions, and what the stores hold."""
        for name, counted in self.counters().items():
            for what, count in counted.items():
                yield Sample(f"transitions_{what}_total", count, {"store": name})
        for name, filled in list(self._filled.items()):
            with suppress(Exception):  # a store of the program's own need not tell
                yield Sample("store_size", len(filled.store), {"store": name})
                yield Sample("store_sampled_total", filled.store.sampled, {"store": name})

    # -- checkpoints -------------------------------------------------------------------------------

    def sources(self) -> dict[str, Source]:
        """Return all stores as a checkpoint needs them."""
        return {
            name: Source(filled.store, filled.hold, filled.positions, filled.counted)
            for name, filled in self._filled.items()
        }

    def commit(self, name: str, store: Any, positions: Mapping[str, StreamId]) -> None:
        """Take note that a store's content up to these positions cannot be lost any more."""
        filled = self._filled.get(name)
        if filled is None or filled.store is not store:
            return
        if filled.consumer is None:
            filled.committed.update(positions)
        else:
            filled.consumer.commit(positions)

    def take_over(self, name: str, saved: SavedStore) -> None:
        """Go on from where a restored store ends."""
        filled = self._filled[name]
        filled.positions, filled.committed = dict(saved.positions), dict(saved.positions)
        filled.counters, filled.consumer = dict(saved.counters), None
