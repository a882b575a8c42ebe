"""The trainer's end: stores that are filled from the streams, and networks that go out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from agentlace.codec import Chunk
from agentlace.config import BrokerURL, TrainerConfig, copy_of
from agentlace.data.data_store import Refusals, put
from agentlace.errors import AgentlaceError, UnknownRequest
from agentlace.service import Server
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.consumer import Consumer
from agentlace.transport.cursor import Lease
from agentlace.transport.streams import Retention, StreamId
from agentlace.transport.weights_publisher import WeightsPublisher

log = logging.getLogger(__name__)

CONSUMER = "trainer"
"""Role of the trainer among the consumers of a stream."""

DataCallback = Callable[[str, dict[str, Any]], Any]
"""Called with a store's name and ``{"data": transitions, "last_id": int}`` after insertion."""
RequestCallback = Callable[[str, Any], Any]
"""Called with a request's type and payload; returns the reply."""


class TrainerServer(Server):
    """Fills data stores with the transitions of all actors, and publishes networks to them.

    Every transition that an actor's ``update()`` has handed to the broker reaches the store
    exactly once and in order per actor; a trainer that starts with empty stores reads all that
    the streams still hold. One thread per store inserts; give it a thread-safe store.

    Args:
        config: the service; it is copied.
        data_callback: called after each insertion, in the store's thread.
        request_callback: called for each request, in the requests' thread.
        log_level: of the logger ``agentlace.trainer``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.
    """

    def __init__(
        self,
        config: TrainerConfig,
        data_callback: DataCallback | None = None,
        request_callback: RequestCallback | None = None,
        log_level: int = logging.INFO,
        broker: str | BrokerURL | None = None,
    ) -> None:
        super().__init__("trainer", config, broker, log_level)
        self.config = copy_of(config)
        self._data_callback = data_callback
        self._request_callback = request_callback
        self._stores: dict[str, Any] = {}
        self._retention: dict[str, Retention] = {}
        self._positions: dict[str, dict[str, StreamId]] = {}
        self._consumers: dict[str, Consumer] = {}
        self._stopped: dict[str, Consumer] = {}
        self._publisher: WeightsPublisher | None = None
        self._publisher_lock = threading.Lock()
        self._began_ms = 0

    def register_data_store(
        self, name: str, data_store: Any, retention: Retention | None = None
    ) -> None:
        """Fill a store from the streams of this name; before or after ``start``.

        Args:
            name: as the actors call it.
            data_store: needs ``insert(transition)``; ``batch_insert(list)`` or
                ``insert_chunk(chunk)`` are used if it has them.
            retention: how much the broker keeps of its streams.
        """
        with self._life:
            old = self._consumers.pop(name, None)
            if old is not None:
                old.stop()
            self._stores[name] = data_store
            self._retention[name] = retention or Retention()
            self._positions[name] = {}
            if self._presence is not None:
                self._consume(name, self._connected())
                self._presence.info.update(self._offers())
                self._presence.beat()

    def data_store(self, name: str) -> Any:
        """Return the store of this name, None if there is none."""
        return self._stores.get(name)

    def store_names(self) -> set[str]:
        """Return the names of all registered stores."""
        return set(self._stores)

    def publish_network(self, payload: Any) -> int:
        """Publish a network to all actors, also those that come later.

        Returns after a copy was taken; it is encoded and sent in the background. If the next
        one comes before it was sent, it is superseded.

        Args:
            payload: a tree of arrays; numpy or JAX.

        Returns:
            The number of this version, counted from 1.

        Raises:
            EncodeError: a value in it may not travel.
            AlreadyServed: another trainer has taken over.
            Closed: after :meth:`stop`, before :meth:`start`.
        """
        broker = self._connected()
        with self._publisher_lock:
            if self._publisher is None:
                self._publisher = WeightsPublisher(broker, self._keys, self._began_ms)
            publisher = self._publisher
        return publisher.publish(payload)

    @property
    def published_version(self) -> int:
        """Number of the newest published network, 0 before the first."""
        return self._publisher.published if self._publisher else 0

    def _connected(self) -> Broker:
        broker = super()._connected()
        if not self._began_ms:  # all that this trainer will publish comes after
            self._began_ms = int(broker.now_ms() - broker.clock_error_ms) - 1
        return broker

    def _offers(self) -> dict[str, Any]:
        stores = {name: kept.to_info() for name, kept in self._retention.items()}
        return {"stores": stores, "began_ms": self._began_ms}

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what != "request" or name not in self.config.request_types:
            raise UnknownRequest(
                f"unknown request type {name!r}; the config has {self.config.request_types}"
            )
        return {} if self._request_callback is None else self._request_callback(name, payload)

    def _start_workers(self, broker: Broker) -> None:
        for name in self._stores:
            self._consume(name, broker)

    def _consume(self, name: str, broker: Broker) -> None:
        assert self._presence is not None
        before = self._stopped.pop(name, None)
        if before is not None and before.is_applying:  # it would be read and applied once more
            self._stopped[name] = before
            raise AgentlaceError(f"store {name!r} is still taking a chunk of before stop()")
        store, positions = self._stores[name], self._positions[name]
        lease = Lease(self._keys.server, self._presence.info["token"])

        def apply(actor: str, chunk: Chunk, last: StreamId) -> Refusals:
            return put(store, chunk)

        def tell(actor: str, chunk: Chunk, last: StreamId, refused: Refusals) -> None:
            self._tell(name, chunk, last, refused)

        on_applied = None if self._data_callback is None else tell
        consumer = Consumer(
            *(broker, self._keys, name, apply, f"{CONSUMER}:{lease.token}", positions),
            lease=lease,
            on_applied=on_applied,
        )
        self._consumers[name] = consumer
        consumer.start()

    def _tell(self, name: str, chunk: Chunk, last: StreamId, refused: Refusals) -> None:
        assert self._data_callback is not None
        rows = [row for i, row in enumerate(chunk.rows()) if i not in refused]
        try:
            self._data_callback(name, {"data": rows, "last_id": last.number})
        except (Exception, SystemExit):  # an exit would end this store's thread, and be all
            log.exception("the data_callback for store %r raised", name)

    def _on_beat(self, channel: Channel) -> None:
        if self._publisher is not None:
            self._publisher.restore(channel)

    def stop(self) -> None:
        """Stop serving and say goodbye, also if it only published. Idempotent.

        In order: no more requests are taken, the running one is answered; the stores take what
        they are being given; a network that waits is sent; the presence key is removed.
        """
        super().stop()

    def _stop_workers(self) -> None:
        consumers, self._consumers = self._consumers, {}
        self._stopped.update(consumers)
        for consumer in consumers.values():
            consumer.stop()
        with self._publisher_lock:
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.stop()

    def counters(self) -> dict[str, dict[str, int]]:
        """Return per store how many transitions were applied, rejected, or found missing."""
        return {
            name: {"applied": c.applied, "rejected": c.rejected, "missing": c.gaps}
            for name, c in self._consumers.items()
        }
