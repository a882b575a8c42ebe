"""The action service: a robot or environment serves observations and executes actions."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from agentlace.config import ActionConfig, BrokerURL, copy_of
from agentlace.errors import AgentlaceError, UnknownRequest
from agentlace.service import Client, Server
from agentlace.telemetry import Sample
from agentlace.transport.backoff import Refrain
from agentlace.transport.broadcast import BroadcastPublisher, BroadcastWatcher, read_newest
from agentlace.transport.connection import Broker
from agentlace.transport.requests import Ticket

__all__ = ["ActionClient", "ActionConfig", "ActionServer"]

log = logging.getLogger(__name__)

ObsCallback = Callable[[set[str]], Any]
"""Called with the requested keys; returns the observation."""
ActCallback = Callable[[str, Any], Any]
"""Called with the action's key and payload; returns the reply."""


class ActionServer(Server):
    """Serves observations and executes actions, one request after the other.

    Args:
        config: the service; it is copied.
        obs_callback: called with the set of requested keys, returns the observation.
        act_callback: called with key and payload, returns the reply. Each action is executed at
            most once.
        log_level: of the logger ``agentlace.action``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.
    """

    def __init__(
        self,
        config: ActionConfig,
        obs_callback: ObsCallback | None,
        act_callback: ActCallback | None,
        log_level: int = logging.WARNING,
        broker: str | BrokerURL | None = None,
    ) -> None:
        super().__init__("action", config, broker, log_level)
        self.config = copy_of(config)
        self._obs_callback = obs_callback
        self._act_callback = act_callback
        self._broadcast: BroadcastPublisher | None = None
        self._broadcast_lock = threading.Lock()
        self._refrain = Refrain()

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what == "act" and self._act_callback is not None:
            if name not in self.config.action_keys:
                _check_known([name], self.config.action_keys, "action")
            return self._act_callback(name, payload)
        if what == "obs" and self._obs_callback is not None:
            _check_known(payload, self.config.observation_keys, "observation")
            return self._obs_callback(set(payload))
        return {"success": False, "message": f"this server has no {what}_callback"}

    def publish_obs(self, payload: Any) -> bool:
        """Broadcast an observation to all watchers; blocks until the broker has it.

        Returns:
            False, with a warning, if ``broadcast_port`` is None, the broker is away, or this
            server was stopped or replaced.

        Raises:
            EncodeError: a value in it may not travel.
        """
        if self.config.broadcast_port is None:
            log.warning("publish_obs needs a broadcast_port in the ActionConfig")
            return False
        try:
            broker = self._connected()
            with self._broadcast_lock:
                if self._broadcast is None:
                    token = self._presence.info["token"] if self._presence else "unserved"
                    self._broadcast = BroadcastPublisher(broker, self._keys, token)
                broadcast = self._broadcast
            broadcast.publish(payload)
        except AgentlaceError as error:
            if isinstance(error, TypeError):  # EncodeError is the caller's mistake
                raise
            if self._refrain.is_due(error):
                log.warning("observation not published: %s%s", error, self._refrain.note())
            return False
        self._refrain.reset()
        return True

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        if self._broadcast is not None:
            yield Sample("observations_published_total", self._broadcast.published)

    def _stop_workers(self) -> None:
        with self._broadcast_lock:
            broadcast, self._broadcast = self._broadcast, None
        if broadcast is not None:
            broadcast.close()

    def _start_workers(self, broker: Broker) -> None:
        self._stop_workers()  # an earlier publish_obs may have opened one without a token


class ActionClient(Client):
    """Requests observations and sends actions.

    Args:
        server_ip: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        port: the config itself; or its ``port_number``, and ``config`` beside it.
        wait_for_server: wait without end for broker and server, logging what for.
        timeout_ms: deadline of one request.
        task_id: a label, without effect.
        config: the service; it is copied. Must equal the server's.
        strict: raise errors that otherwise give None; default AGENTLACE_STRICT.
        broker: address; else AGENTLACE_BROKER, else ``server_ip``'s.

    Raises:
        BrokerUnreachable, PeerAbsent: not there within five seconds.
        BrokerAuthFailed: the broker refuses the user or password.
        ConfigMismatch: the server was built with another config.
    """

    def __init__(
        self,
        server_ip: str,
        port: int | ActionConfig | None = None,
        wait_for_server: bool = False,
        timeout_ms: float = 800,
        task_id: str | None = None,
        config: ActionConfig | None = None,
        strict: bool | None = None,
        broker: str | BrokerURL | None = None,
    ) -> None:
        config = _checked_config(port, config)
        super().__init__("action", server_ip, config, broker, timeout_ms, strict)
        self.config = copy_of(config)
        self.task_id = task_id
        self._watchers: list[BroadcastWatcher] = []
        try:
            self._connect(wait_for_server)
        except BaseException:
            self.stop()
            raise

    def obs(self, keys: Iterable[str] | None = None) -> Any:
        """Return the server's observation; None on a timeout (see ``last_error``).

        Args:
            keys: observation keys to ask for, all if None.

        Raises:
            UnknownRequest: a key is not in the config's ``observation_keys``.
        """
        known = self.config.observation_keys
        wanted = set(known) if keys is None else set(keys)
        _check_known(wanted, known, "observation")
        return self._call("obs", "", wanted)

    def act(self, key: str, payload: Any = None, *, ticket: Ticket | None = None) -> Any:
        """Execute an action and return the server's reply; None on a timeout.

        The action is executed at most once, and never after its deadline has passed; if it gave
        None, ``last_error.started`` tells whether the server had taken it.

        Args:
            key: one of the config's ``action_keys``.
            payload: any tree; {} if None.
            ticket: of an earlier call that this one repeats: if the server has executed it, its
                reply is returned.

        Raises:
            UnknownRequest: the key is not in the config's ``action_keys``.
            EncodeError: a value in the payload may not travel.
        """
        if key not in self.config.action_keys:
            _check_known([key], self.config.action_keys, "action")
        return self._call("act", key, {} if payload is None else payload, ticket)

    def _call(self, what: str, name: str, payload: Any, ticket: Ticket | None = None) -> Any:
        timeout_s = self.timeout_ms / 1000
        return self._softly(self._requests.call, what, name, payload, timeout_s, ticket)

    def new_ticket(self) -> Ticket:
        """Return the identity of an action that may have to be repeated."""
        return self._requests.ticket()

    def register_obs_callback(self, callback: Callable[[Any], object]) -> None:
        """Call back with every observation that the server publishes from now on.

        If this client is slower than the server it gets the newest only; ``missed_obs`` counts
        the others. The callback runs in a thread of its own.

        Raises:
            AgentlaceError: the config has no ``broadcast_port``.
            Closed: after :meth:`stop`.
        """
        self._check_usable()
        if self.config.broadcast_port is None:
            raise AgentlaceError("register_obs_callback needs a broadcast_port in the ActionConfig")
        watcher = BroadcastWatcher(self._broker, self._keys, callback)
        self._watchers.append(watcher)
        watcher.start()

    @property
    def missed_obs(self) -> int:
        """Observations that were published but that the callbacks did not get."""
        return sum(watcher.missed for watcher in self._watchers)

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        if self._watchers:
            yield Sample("observations_missed_total", self.missed_obs)
            delivered = sum(watcher.delivered for watcher in self._watchers)
            yield Sample("observations_received_total", delivered)

    def latest_obs(self) -> Any:
        """Return the newest broadcast observation; None if there was none in ten seconds."""

        def read() -> Any:
            with contextlib.closing(self._broker.channel(key=self._keys.prefix)) as channel:
                newest = read_newest(channel, self._keys)
                return None if newest is None else newest.tree

        return self._softly(read)

    def stop(self) -> None:
        """Stop; callbacks that are running may finish first."""
        for watcher in getattr(self, "_watchers", []):
            watcher.stop()
        super().stop()


def _checked_config(port: int | ActionConfig | None, config: ActionConfig | None) -> ActionConfig:
    """Return the config of ``(ip, config)`` and of ``(ip, port, config=config)``."""
    if isinstance(port, ActionConfig):
        port, config = None, port
    if not isinstance(config, ActionConfig):
        raise TypeError(f"config must be an ActionConfig, not {type(config).__name__}")
    if port is not None and port != config.port_number:
        raise AgentlaceError(
            f"port {port} differs from the config's port_number {config.port_number}"
        )
    return config


def _check_known(keys: Iterable[str], known: Iterable[str], kind: str) -> None:
    unknown = sorted(map(str, set(keys) - set(known)))
    if unknown:
        raise UnknownRequest(
            f"unknown {kind} key {', '.join(map(repr, unknown))}; "
            f"the config has {', '.join(map(repr, sorted(known))) or 'none'}"
        )
