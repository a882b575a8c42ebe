"""An actor's end of the weights."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agentlace import codec
from agentlace.errors import AgentlaceError, Closed, SchemaMismatch
from agentlace.logs import Refrain, about
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.subscription import Subscription
from agentlace.transport.weights import Manifest, Version
from agentlace.transport.weights_fetch import Fetcher, Superseded

log = logging.getLogger(__name__)

POLL_S = 5.0
"""The pointer is also read without a notification, so that a deaf subscription is noticed."""
JOIN_TIMEOUT_S = 5.0


class WeightsReceiver:
    """Calls back with the newest network: once per version, never an older one.

    Args:
        broker: where.
        keys: of the trainer.
        callback: called with the tree, in the receiver's own thread.
        check: called with it before that; raises SchemaMismatch to refuse it.
        on_refused: called with that error.

    Attributes:
        refusal: why the newest network was refused; None once one was not.
    """

    def __init__(
        self,
        broker: Broker,
        keys: ServiceKeys,
        callback: Callable[[Any], object],
        check: Callable[[Any], None] | None = None,
        on_refused: Callable[[SchemaMismatch], None] = lambda error: None,
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._callback = callback
        self._check = check
        self._on_refused = on_refused
        self._refused: Version | None = None
        self._refrain = Refrain()
        self.refusal: SchemaMismatch | None = None
        self._channel = broker.channel(key=keys.prefix)
        self._subscription = Subscription(broker, keys.weights_channel)
        self._stop = threading.Event()
        self._fetcher = Fetcher(self._channel, keys)
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
                if message == b"" or self._subscription.was_renewed or time.monotonic() > next_poll:
                    next_poll = time.monotonic() + POLL_S
                    self._deliver(self._fetcher.newest())
                elif message:
                    self._deliver(Manifest.decode(message))
                backoff.reset()
            except Closed:
                return
            except Exception as error:
                next_poll = 0.0
                self._note(error, backoff)
                self._stop.wait(backoff.next_s())

    def _note(self, error: Exception, backoff: Backoff) -> None:
        if isinstance(error, Superseded):
            return
        is_news = backoff.is_news(error) and not self._stop.is_set()
        if not isinstance(error, AgentlaceError):
            self._channel.disconnect()  # what is under way on it is unknown
            if is_news:
                text = "weights of %s are tried again"
                log.error(text, self._keys.name, exc_info=error, extra=self._about(error))
        elif is_news:
            text = "weights of %s wait: %s"
            log.warning(text, self._keys.name, error, extra=self._about(error))

    def _about(self, error: Exception) -> dict[str, Any]:
        return about(self._keys.labels, error=error)

    def _deliver(self, manifest: Manifest | None) -> None:
        if manifest is None or (self.version and manifest.version <= self.version):
            return
        if self._refused and manifest.version <= self._refused:
            return
        tree = codec.decode(self._fetcher.fetch(manifest)).tree
        if not self._fits(tree, manifest.version):
            return
        self.version, self.published_ms = manifest.version, manifest.published_ms
        self.received += 1
        try:
            self._callback(tree)
        except Exception as error:
            text, fields = "the callback for network %s raised", self._about(error)
            self._refrain.say(log.exception, error, text, manifest.version, extra=fields)

    def _fits(self, tree: Any, version: Version) -> bool:
        """Check a network; one that is refused is not fetched again."""
        try:
            if self._check is not None:
                self._check(tree)
        except SchemaMismatch as error:
            self._refused, self.refusal = version, error
            fields = self._about(error)
            text = "network %s of %s is refused, the one before it stays: %s"
            args = (version, self._keys.name, error)
            self._refrain.say(log.error, error, text, *args, extra=fields)
            self._on_refused(error)
            return False
        self.refusal = None
        return True

    def stop(self) -> None:
        """Stop receiving; a callback that is running may finish first (JOIN_TIMEOUT_S)."""
        self._stop.set()
        self._subscription.close()
        self._channel.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
