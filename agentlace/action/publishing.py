"""A server that broadcasts observations, when it is told or at a fixed rate."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from agentlace.action.images import ImageTimes, ObservationImages
from agentlace.action.known import check_known
from agentlace.action.rate import RatePublisher
from agentlace.config import ActionConfig, BrokerURL, copy_of
from agentlace.errors import AgentlaceError
from agentlace.logs import Refrain, about
from agentlace.service import Server
from agentlace.telemetry import Sample
from agentlace.transport.broadcast import BroadcastPublisher
from agentlace.transport.connection import Broker

log = logging.getLogger(__name__)

LOCK_SLICE_S = 0.1

ObsCallback = Callable[[set[str]], Any]
"""Called with the requested keys; returns the observation."""


class PublishingServer(Server):
    """The part of an :class:`agentlace.action.ActionServer` that broadcasts observations."""

    def __init__(
        self,
        config: ActionConfig,
        obs_callback: ObsCallback | None,
        log_level: int,
        broker: str | BrokerURL | None,
    ) -> None:
        super().__init__("action", config, broker, log_level)
        self.config = copy_of(config)
        self._obs_callback = obs_callback
        self._images = ObservationImages(self.config.image_codecs)
        self._handling = threading.Lock()
        self._rate: RatePublisher | None = None
        self._shares_obs_callback = False
        self._broadcast: BroadcastPublisher | None = None
        self._broadcast_lock = threading.Lock()
        self._refrain = Refrain()

    def _looked(self, callback: ObsCallback, keys: set[str]) -> Any:
        """Return an observation whose images are encoded, from a callback that nobody else runs.

        If two threads call it, its arrays are copied: it may fill them anew for the other one.
        """
        observation = self._images.encoded(callback(keys))
        return _copied(observation) if self._shares_obs_callback else observation

    def publish_obs(self, payload: Any, captured_s: float | None = None) -> bool:
        """Broadcast an observation to all watchers; blocks until the broker has it.

        Args:
            payload: any tree; images in it are encoded as the config says.
            captured_s: when it was captured, in this machine's ``time.monotonic()``; now if None.

        Returns:
            False, with a warning, if ``broadcast_port`` is None, the broker is away, or this
            server was stopped or replaced.

        Raises:
            EncodeError: a value in it may not travel.
        """
        if self.config.broadcast_port is None:
            text = "publish_obs needs a broadcast_port in the ActionConfig"
            self._refrain.say(log.warning, text, text, extra=self._keys.labels)
            return False
        return self._published(self._images.encoded(payload), captured_s)

    def _published(self, encoded: Any, captured_s: float | None) -> bool:
        try:
            self._check_not_ended()
            # A thread that stop() waits for must not wait for stop(), as _connected() may.
            broadcast = self._broadcast or self._opened_broadcast(self._connected())
            broadcast.publish(encoded, captured_s)
        except AgentlaceError as error:
            if isinstance(error, TypeError):  # EncodeError is the caller's mistake
                raise
            text, fields = "observation not published: %s", about(self._keys.labels, error=error)
            self._refrain.say(log.warning, error, text, error, extra=fields)
            return False
        self._refrain.reset()
        return True

    def _opened_broadcast(self, broker: Broker) -> BroadcastPublisher:
        with self._broadcast_lock:
            if self._broadcast is None:
                token = self._presence.info["token"] if self._presence else "unserved"
                self._broadcast = BroadcastPublisher(broker, self._keys, token)
            return self._broadcast

    def publish_at(
        self,
        rate_hz: float,
        keys: Iterable[str] | None = None,
        callback: ObsCallback | None = None,
    ) -> RatePublisher:
        """Broadcast an observation ``rate_hz`` times a second, whenever this server runs.

        A thread captures and publishes. Ticks that it is late for are skipped and counted, never
        made up for; the rate does not drift. A second call replaces the first.

        Args:
            rate_hz: observations per second.
            keys: observation keys to capture, all if None.
            callback: captures instead of ``obs_callback``. It may run at the same time as the
                handlers, so that a slow action delays no observation. Without it, ``obs_callback``
                is called, which waits until a handler that is running has returned.

        Returns:
            What counts the observations: ``published``, ``skipped``, ``failed``.

        Raises:
            AgentlaceError: the config has no ``broadcast_port``, or there is nothing to call.
            UnknownRequest: a key is not in the config's ``observation_keys``.
            ValueError: ``rate_hz`` is not positive.
        """
        if self.config.broadcast_port is None:
            raise AgentlaceError("publish_at needs a broadcast_port in the ActionConfig")
        capture = callback or self._obs_callback
        if capture is None:
            raise AgentlaceError("publish_at needs a callback: this server has no obs_callback")
        known = self.config.observation_keys
        wanted = set(known) if keys is None else set(keys)
        check_known(wanted, known, "observation")
        self.stop_publishing()

        def look() -> Any:
            if callback is not None:
                return self._images.encoded(callback(set(wanted)))
            return self._look_between_requests(rate, capture, set(wanted))

        rate = RatePublisher(rate_hz, look, self._published)
        with self._life:
            self._rate, self._shares_obs_callback = rate, callback is None
            if self.is_running:
                rate.start()
        return rate

    def _look_between_requests(
        self, rate: RatePublisher, capture: ObsCallback, keys: set[str]
    ) -> Any:
        while not self._handling.acquire(timeout=LOCK_SLICE_S):
            if rate.stopping.is_set():
                return None
        try:
            return self._looked(capture, keys)
        finally:
            self._handling.release()

    def stop_publishing(self) -> None:
        """End what :meth:`publish_at` began. Idempotent."""
        with self._life:
            rate, self._rate = self._rate, None
        if rate is not None:
            rate.stop()
        self._shares_obs_callback = False

    @property
    def image_times(self) -> dict[str, ImageTimes]:
        """What encoding has cost so far, by the place of the image."""
        return self._images.times

    def _stop_workers(self) -> None:
        if self._rate is not None:
            self._rate.stopping.set()
        with self._broadcast_lock:
            broadcast, self._broadcast = self._broadcast, None
        if broadcast is not None:
            broadcast.close()
        if self._rate is not None:
            self._rate.stop()

    def _start_workers(self, broker: Broker) -> None:
        self._stop_workers()  # an earlier publish_obs may have opened one without a token
        if self._rate is not None:
            self._rate.start()

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        if (broadcast := self._broadcast) is not None:
            yield Sample("observations_published_total", broadcast.published)
            yield Sample("observations_sent_bytes_total", broadcast.sent_bytes)
        if (rate := self._rate) is not None:
            yield Sample("observations_skipped_total", rate.skipped)
        yield from self._images.samples()


def _copied(tree: Any) -> Any:
    """Return a tree with arrays of its own."""
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if type(tree) is dict:
        return {key: _copied(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(_copied, tree))
    return tree
