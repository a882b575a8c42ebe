"""Observation broadcast: newest only, gaps counted, never queued.

A message is a frame with a sequence number. Up to INLINE_BYTES the observation rides in the
message; above, the message is empty and the observation is read from the newest key, so that a
slow watcher costs nobody memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from agentlace import codec
from agentlace.errors import AgentlaceError, Closed, DecodeError
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import NEWEST_MS, ServiceKeys
from agentlace.transport.subscription import Subscription

log = logging.getLogger(__name__)

INLINE_BYTES = 64 << 10
OBSERVATION = "obs"
JOIN_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 2.0


class BroadcastPublisher:
    """Publishes observations. Thread-safe."""

    def __init__(self, broker: Broker, keys: ServiceKeys, token: str) -> None:
        self._keys = keys
        self._channel = broker.channel(PUBLISH_TIMEOUT_S, keys.prefix)
        self._lock = threading.Lock()
        self._token = token
        self.published = 0

    def publish(self, tree: Any) -> None:
        """Publish an observation; blocks until the broker has it.

        Raises:
            EncodeError: a value in it may not travel.
            BrokerUnreachable, StoreFull: watchers did not get it.
        """
        with self._lock:
            meta = {"source": self._token, "number": self.published + 1}
            frame = codec.encode(tree, OBSERVATION, meta)
            self.published += 1
            message = frame if frame.nbytes <= INLINE_BYTES else b""
            commands: list[Any] = [
                ("SET", self._keys.newest_obs, frame, "PX", NEWEST_MS),
                (self._channel.pubsub().publish, self._keys.obs_channel, message),
            ]
            self._channel.checked(self._channel.exchange(commands, PUBLISH_TIMEOUT_S))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def read_newest(channel: Channel, keys: ServiceKeys) -> codec.Message | None:
    """Return the newest observation, None if there was none in the last seconds (NEWEST_MS)."""
    value = channel.call("GET", keys.newest_obs)
    return None if value is None else codec.decode(value, OBSERVATION)


class BroadcastWatcher:
    """Calls back with each newest observation, in a thread of its own.

    ``missed`` counts observations that were published but not delivered, because this watcher
    was slower or not connected.
    """

    def __init__(
        self, broker: Broker, keys: ServiceKeys, callback: Callable[[Any], object]
    ) -> None:
        self._keys = keys
        self._callback = callback
        self._channel = broker.channel(key=keys.prefix)
        self._subscription = Subscription(broker, keys.obs_channel)
        self._stop = threading.Event()
        self._last: tuple[str, int] | None = None
        self.delivered = 0
        self.missed = 0
        self._thread = threading.Thread(target=self._run, name="watch obs", daemon=True)

    def start(self) -> None:
        """Subscribe and begin to watch.

        Subscribes before it returns, so that what is published next is seen; if the broker is
        away, the thread goes on trying.
        """
        try:
            self._subscription.newest()
        except AgentlaceError as error:
            log.warning("broadcast of %s waits for the broker: %s", self._keys.name, error)
        self._thread.start()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                message = self._subscription.newest()
                if message is not None:
                    self._deliver(message)
                backoff.reset()
            except Closed:
                return
            except AgentlaceError as error:
                if backoff.is_news(error) and not self._stop.is_set():
                    log.warning("broadcast of %s waits for the broker: %s", self._keys.name, error)
                self._stop.wait(backoff.next_s())

    def _deliver(self, message: bytes | memoryview) -> None:
        if message:
            observation: codec.Message | None = codec.decode(message, OBSERVATION)
        else:
            observation = read_newest(self._channel, self._keys)
        if observation is None or not self._is_newer(observation.meta):
            return
        self.delivered += 1
        try:
            self._callback(observation.tree)
        except Exception:
            log.exception("the callback for an observation raised")

    def _is_newer(self, meta: Mapping[str, Any]) -> bool:
        """Whether an observation comes after the last one; counts those in between."""
        try:
            source, number = str(meta["source"]), int(meta["number"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DecodeError(f"an observation without {error}") from error
        if self._last and self._last[0] == source:
            if number <= self._last[1]:
                return False
            self.missed += number - self._last[1] - 1
        elif self._last is None:
            self.missed = self._subscription.received - 1
        self._last = (source, number)
        return True

    def stop(self) -> None:
        """Stop watching; a callback that is running may finish first (JOIN_TIMEOUT_S)."""
        self._stop.set()
        self._subscription.close()
        self._channel.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
