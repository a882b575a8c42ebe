"""An actor's end of the weights."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agentlace import codec
from agentlace.errors import AgentlaceError, Closed, DecodeError
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.subscription import Subscription
from agentlace.transport.weights import LeafKeys, Manifest, Version, newest_manifest

log = logging.getLogger(__name__)

POLL_S = 5.0
"""The pointer is also read without a notification, so that a deaf subscription is noticed."""
JOIN_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 30.0


class _Superseded(Exception):
    """A leaf is gone: a newer version was published while this one was being fetched."""


class WeightsReceiver:
    """Calls back with the newest network: once per version, never an older one.

    Args:
        broker: where.
        keys: of the trainer.
        callback: called with the tree, in the receiver's own thread.
    """

    def __init__(
        self, broker: Broker, keys: ServiceKeys, callback: Callable[[Any], object]
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._callback = callback
        self._channel = broker.channel()
        self._subscription = Subscription(broker, keys.weights_channel)
        self._stop = threading.Event()
        self._frozen: dict[str, memoryview] = {}
        self._last_keys: set[str] = set()
        self.version: Version | None = None
        self.published_ms: float | None = None
        self.received = 0
        self._thread = threading.Thread(target=self._run, name="receive weights", daemon=True)

    def start(self) -> None:
        """Begin to receive; the newest version is fetched at once."""
        self._thread.start()

    @property
    def age_s(self) -> float | None:
        """Seconds since the trainer published the newest received version."""
        if self.published_ms is None:
            return None
        return (self._broker.now_ms() - self.published_ms) / 1000

    def _run(self) -> None:
        backoff, next_poll = Backoff(), 0.0
        while not self._stop.is_set():
            try:
                message = self._subscription.newest()
                if message:
                    self._deliver(Manifest.decode(message))
                if message == b"" or self._subscription.was_renewed or time.monotonic() > next_poll:
                    next_poll = time.monotonic() + POLL_S
                    self._deliver(newest_manifest(self._channel, self._keys))
                backoff.reset()
            except Closed:
                return
            except Exception as error:
                next_poll = 0.0
                self._note(error, backoff)
                self._stop.wait(backoff.next_s())

    def _note(self, error: Exception, backoff: Backoff) -> None:
        if isinstance(error, _Superseded):
            return
        is_news = backoff.is_news(error) and not self._stop.is_set()
        if not isinstance(error, AgentlaceError):
            self._channel.disconnect()  # what is under way on it is unknown
            if is_news:
                log.error("weights of %s are tried again", self._keys.name, exc_info=error)
        elif is_news:
            log.warning("weights of %s wait: %s", self._keys.name, error)

    def _deliver(self, manifest: Manifest | None) -> None:
        if manifest is None or (self.version and manifest.version <= self.version):
            return
        data = manifest.head if manifest.leaves is None else self._fetch(manifest)
        tree = codec.decode(data).tree
        self.version, self.published_ms = manifest.version, manifest.published_ms
        self.received += 1
        try:
            self._callback(tree)
        except Exception:
            log.exception("the callback for network %s raised", manifest.version)

    def _fetch(self, manifest: Manifest) -> memoryview:
        """Return the network's whole frame: its header, and the leaves at their places."""
        try:
            data = self._assembled(manifest, manifest.leaves or [])
        except (TypeError, ValueError) as error:
            raise DecodeError(f"network {manifest.version} is damaged: {error}") from error
        self._last_keys = manifest.keys
        self._frozen = {key: self._frozen[key] for key in self._frozen if key in self._last_keys}
        return data

    def _assembled(self, manifest: Manifest, leaves: list[LeafKeys]) -> memoryview:
        data = codec.Frame([], manifest.nbytes).copy()
        data[: manifest.head.nbytes] = manifest.head
        _, spans = codec.leaf_spans(data)
        for (offset, nbytes), keys in zip(spans, leaves, strict=True):
            end = offset
            for key in keys:
                part = self._part(key)
                start, end = end, end + len(part)
                data[start:end] = part
            if end != offset + nbytes:
                raise DecodeError(f"a leaf of {nbytes} bytes arrived with {end - offset}")
        return data

    def _part(self, key: str) -> memoryview:
        """Return a part's bytes; one that a second version refers to is kept from then on."""
        if key in self._frozen:
            return self._frozen[key]
        value = self._channel.call("GET", key, timeout_s=FETCH_TIMEOUT_S)
        if value is None:
            raise _Superseded
        part = memoryview(value)
        if key in self._last_keys:
            self._frozen[key] = part
        return part

    def stop(self) -> None:
        """Stop receiving; a callback that is running may finish first (JOIN_TIMEOUT_S)."""
        self._stop.set()
        self._subscription.close()
        self._channel.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
