"""The action service's serving end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from agentlace.action.control import CONTROL, Holder, Lease
from agentlace.action.known import check_known
from agentlace.action.publishing import ObsCallback, PublishingServer
from agentlace.action.watchdog import Watchdog
from agentlace.config import ActionConfig, BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed, DecodeError
from agentlace.telemetry import Sample
from agentlace.transport.connection import Broker, Channel

ActCallback = Callable[[str, Any], Any]
"""Called with the action's key and payload; returns the reply."""


class ActionServer(PublishingServer):
    """Serves observations and executes actions, one request after the other.

    ``obs_callback`` and ``act_callback`` never run at the same time, whichever thread calls them.

    Args:
        config: the service; it is copied.
        obs_callback: called with the set of requested keys, returns the observation.
        act_callback: called with key and payload, returns the reply. Each action is executed at
            most once.
        log_level: of the logger ``agentlace.action``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.

    Raises:
        BadSetting: the config names an image codec that there is not.
        MissingExtra: the config has image codecs, and OpenCV is not installed.
    """

    def __init__(
        self,
        config: ActionConfig,
        obs_callback: ObsCallback | None,
        act_callback: ActCallback | None,
        log_level: int = logging.WARNING,
        broker: str | BrokerURL | None = None,
    ) -> None:
        super().__init__(config, obs_callback, log_level, broker)
        self._act_callback = act_callback
        self._lease = Lease(self._keys, self._announce_control)
        self._watchdog: Watchdog | None = None

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what == "act" and self._act_callback is not None:
            return self._act(self._act_callback, name, payload)
        if what == "obs" and self._obs_callback is not None:
            check_known(payload, self.config.observation_keys, "observation")
            with self._handling:
                return self._looked(self._obs_callback, set(payload))
        if what == CONTROL:
            return self._lease.handle(name, self._caller(), payload)
        return {"success": False, "message": f"this server has no {what}_callback"}

    def _act(self, callback: ActCallback, name: str, payload: Any) -> Any:
        if name not in self.config.action_keys:
            check_known([name], self.config.action_keys, "action")
        if self._lease.holder is not None:
            self._lease.check(self._caller(), name)
        watchdog = self._watchdog
        with self._handling:
            if watchdog is None:
                return callback(name, payload)
            with watchdog:
                return callback(name, payload)

    def _caller(self) -> bytes:
        return b"" if self._requests is None else self._requests.caller

    def watch_actions(self, timeout_ms: float, callback: Callable[[], object]) -> None:
        """Call back when no action comes any more, to hold a robot whose driver is gone.

        Called once ``timeout_ms`` after an action's handler has returned, if no other action
        came; then again after the next silence. The first action arms it: a robot that nobody
        has moved need not be stopped. An action that is refused does not count.

        The callback runs in a thread of its own and waits for nothing, so it may run at the same
        time as ``obs_callback``; an action that comes meanwhile waits until it has returned. A
        second call replaces the first.

        Raises:
            ValueError: ``timeout_ms`` is not positive.
        """
        watchdog = Watchdog(timeout_ms / 1000, callback)
        with self._life:
            before, self._watchdog = self._watchdog, watchdog
            if self.is_running:
                watchdog.start()
        if before is not None:
            before.end()

    @property
    def controlled_by(self) -> Holder | None:
        """The client that alone may act; None if every client may."""
        return self._lease.holder

    def _announce_control(self) -> None:
        """Tell everybody who has control; if the broker is away, the next heartbeat does."""
        life, holder = self._presence, self._lease.holder
        if life is None:
            return
        if holder is None:
            life.info.pop(CONTROL, None)
        else:
            life.info[CONTROL] = holder._asdict()
        with contextlib.suppress(AgentlaceError):
            life.beat()

    def _offers(self) -> dict[str, Any]:
        with contextlib.closing(self._connected().channel(key=self._keys.prefix)) as channel:
            with contextlib.suppress(DecodeError, BrokerAuthFailed):  # announcing tells the latter
                self._lease.restore(channel)
        holder = self._lease.holder
        return {} if holder is None else {CONTROL: holder._asdict()}

    def _on_beat(self, channel: Channel) -> None:
        self._lease.look(channel)

    def _halt(self) -> None:
        if self._watchdog is not None:  # first: an action may wait for its callback
            self._watchdog.end()
        super()._halt()

    def _start_workers(self, broker: Broker) -> None:
        super()._start_workers(broker)
        if self._watchdog is not None:
            self._watchdog.start()

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        yield Sample("actions_refused_total", self._lease.refused)
        if (watchdog := self._watchdog) is not None:
            yield Sample("watchdog_calls_total", watchdog.calls)
