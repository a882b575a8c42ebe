"""The action service's calling end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from agentlace.action.known import check_known
from agentlace.config import ActionConfig, BrokerURL, copy_of
from agentlace.errors import AgentlaceError
from agentlace.service import Client
from agentlace.transport.broadcast import BroadcastWatcher, read_newest
from agentlace.transport.requests import Ticket


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
        check_known(wanted, known, "observation")
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
            check_known([key], self.config.action_keys, "action")
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
