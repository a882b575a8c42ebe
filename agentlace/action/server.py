"""The action service's serving end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from agentlace.action.known import check_known
from agentlace.config import ActionConfig, BrokerURL, copy_of
from agentlace.errors import AgentlaceError
from agentlace.service import Server
from agentlace.transport.backoff import Refrain
from agentlace.transport.broadcast import BroadcastPublisher
from agentlace.transport.connection import Broker

log = logging.getLogger("agentlace.action")

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
                check_known([name], self.config.action_keys, "action")
            return self._act_callback(name, payload)
        if what == "obs" and self._obs_callback is not None:
            check_known(payload, self.config.observation_keys, "observation")
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

    def _stop_workers(self) -> None:
        with self._broadcast_lock:
            broadcast, self._broadcast = self._broadcast, None
        if broadcast is not None:
            broadcast.close()

    def _start_workers(self, broker: Broker) -> None:
        self._stop_workers()  # an earlier publish_obs may have opened one without a token
