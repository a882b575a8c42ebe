"""Observation broadcast: newest only, gaps counted, never queued.

A message is a frame with a sequence number and the time of capture in the broker's time. Up to
INLINE_BYTES the observation rides in the message; above, the message is empty and the observation
is read from the newest key, so that a slow watcher costs nobody memory.

Sender and receiver each know their offset to the broker's clock, and how wrong that may be. So an
age is a difference in one clock, and comes with its error.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agentlace import codec
from agentlace.errors import AgentlaceError, Closed, DecodeError
from agentlace.logs import Refrain, about
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
        self._broker = broker
        self._keys = keys
        self._channel = broker.channel(PUBLISH_TIMEOUT_S, keys.prefix)
        self._lock = threading.Lock()
        self._token = token
        self.published = self.sent_bytes = 0

    def publish(self, tree: Any, captured_s: float | None = None) -> None:
        """Publish an observation; blocks until the broker has it.

        Args:
            tree: the observation.
            captured_s: when it was captured, in this machine's monotonic time; now if None.

        Raises:
            EncodeError: a value in it may not travel.
            BrokerUnreachable, StoreFull: watchers did not get it.
        """
        captured_ms = self._broker.at_ms(time.monotonic() if captured_s is None else captured_s)
        times = {"captured_ms": captured_ms, "error_ms": self._broker.clock_error_ms}
        with self._lock:
            meta = {"source": self._token, "number": self.published + 1, **times}
            frame = codec.encode(tree, OBSERVATION, meta)
            self.published += 1
            message = frame if frame.nbytes <= INLINE_BYTES else b""
            commands: list[Any] = [
                ("SET", self._keys.newest_obs, frame, "PX", NEWEST_MS),
                (self._channel.pubsub().publish, self._keys.obs_channel, message),
            ]
            self._channel.checked(self._channel.exchange(commands, PUBLISH_TIMEOUT_S))
            self.sent_bytes += frame.nbytes * (2 if message is frame else 1)

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
        self._broker = broker
        self._channel = broker.channel(key=keys.prefix)
        self._subscription = Subscription(broker, keys.obs_channel)
        self._stop = threading.Event()
        self._last: tuple[str, int] | None = None
        self._is_behind = True
        self._refrain = Refrain()
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
            self._catch_up()
            self._is_behind = False
        except AgentlaceError as error:
            self._say_waits(error)
        self._thread.start()

    def _catch_up(self) -> None:
        """Do what is to be done after messages that may have been lost."""

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                message = self._subscription.newest()
                self._is_behind |= self._subscription.was_renewed
                if message is not None:
                    self._deliver(message)
                elif self._is_behind:
                    self._catch_up()
                self._is_behind = False
                backoff.reset()
            except Closed:
                return
            except AgentlaceError as error:
                self._is_behind = True
                if backoff.is_news(error) and not self._stop.is_set():
                    self._say_waits(error)
                self._stop.wait(backoff.next_s())

    def _say_waits(self, error: AgentlaceError) -> None:
        fields = about(self._keys.labels, error=error)
        text = "broadcast of %s waits for the broker: %s"
        log.warning(text, self._keys.name, error, extra=fields)

    def _deliver(self, message: bytes | memoryview) -> None:
        if message:
            observation: codec.Message | None = codec.decode(message, OBSERVATION)
        else:
            observation = read_newest(self._channel, self._keys)
        if observation is None or not self._is_newer(observation.meta):
            return
        self.delivered += 1
        self._hand_over(observation)

    def _hand_over(self, observation: codec.Message) -> None:
        try:
            self._callback(observation.tree)
        except Exception as error:
            text, fields = "the callback for an observation raised", self._keys.labels
            fields = about(fields, error=error)
            self._refrain.say(log.exception, error, text, extra=fields)

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
            self.missed = max(0, self._subscription.received - 1)
        self._last = (source, number)
        return True

    def stop(self) -> None:
        """Stop watching; a callback that is running may finish first (JOIN_TIMEOUT_S)."""
        self._stop.set()
        self._subscription.close()
        self._channel.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)


class Newest(NamedTuple):
    """An observation, and when it was captured.

    Attributes:
        tree: the observation.
        sequence: its number among those of its server, from 1.
        captured_ms: when it was captured, in the broker's time; None if it does not say.
        captured_s: the same in this machine's monotonic time; else when it arrived here.
        error_s: how far off ``captured_s`` may be.
    """

    tree: Any
    sequence: int
    captured_ms: float | None
    captured_s: float
    error_s: float


class NewestWatcher(BroadcastWatcher):
    """Keeps the newest observation, in a thread of its own.

    It begins with the last one that was published before, if that is no older than NEWEST_MS.

    Args:
        broker: where.
        keys: whose.
        opened: called with each observation's tree; returns what is kept.
    """

    def __init__(self, broker: Broker, keys: ServiceKeys, opened: Callable[[Any], Any]) -> None:
        super().__init__(broker, keys, opened)
        self.newest: Newest | None = None

    def _catch_up(self) -> None:
        """Read what was published while nobody listened."""
        self._deliver(b"")

    def _hand_over(self, observation: codec.Message) -> None:
        now_s, meta = time.monotonic(), observation.meta
        captured_ms, error_ms = _time_in(meta, "captured_ms"), _time_in(meta, "error_ms") or 0.0
        age_s = error_s = 0.0
        if captured_ms is not None:
            # From here on only this machine's clock counts: the broker's may be another one's soon.
            age_s = max(0.0, (self._broker.at_ms(now_s) - captured_ms) / 1000)
            error_s = (error_ms + self._broker.clock_error_ms) / 1000
        tree = self._callback(observation.tree)
        self.newest = Newest(tree, int(meta["number"]), captured_ms, now_s - age_s, error_s)


def _time_in(meta: Mapping[str, Any], name: str) -> float | None:
    """Return a time in milliseconds; None if there is none, or none that can be."""
    value = meta.get(name)
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return None
    return float(value)
