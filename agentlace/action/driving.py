"""A client that may have a robot for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from agentlace.action.claim import REQUEST_S, Claim
from agentlace.action.control import CONTROL, Holder
from agentlace.config import ActionConfig, BrokerURL, copy_of
from agentlace.errors import AgentlaceError
from agentlace.service import Client
from agentlace.transport.connection import Channel


class DrivingClient(Client):
    """The part of an :class:`agentlace.action.ActionClient` that takes exclusive control."""

    def __init__(
        self,
        server_ip: str,
        config: ActionConfig,
        broker: str | BrokerURL | None,
        timeout_ms: float,
        strict: bool | None,
    ) -> None:
        super().__init__("action", server_ip, config, broker, timeout_ms, strict)
        self.config = copy_of(config)
        self._claim = Claim(self._keys.name, self._ask_for_control, self._me(), self._stopping)

    def take_control(self, timeout_s: float = 0.0) -> None:
        """Let no other client act until :meth:`release_control` or :meth:`stop`.

        A client that dies or loses the broker loses control some seconds later. It takes it
        again, if it can, as soon as it is back; until then its own actions are not sent.

        Args:
            timeout_s: how long to wait while another client has control.

        Raises:
            ControlHeld: another client has it; the message says which.
            AgentlaceError: the server is of an earlier version, which gives no control.
            Closed: after :meth:`stop`.
            RequestTimeout, BrokerUnreachable: the server did not answer.
        """
        self._check_usable()
        self._claim.take(timeout_s, self._control_timeout_s())

    def release_control(self) -> None:
        """Let other clients act again. Without effect if this client has no control.

        Raises:
            RequestTimeout, BrokerUnreachable: the server did not answer; it will notice.
        """
        self._claim.release(self._control_timeout_s())

    @contextlib.contextmanager
    def control(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Have control for a block, or go on having it; raises as :meth:`take_control`."""
        had = self._claim.is_wanted
        if not had:
            self.take_control(timeout_s)
        try:
            yield
        finally:
            if not had:
                with contextlib.suppress(AgentlaceError):  # the heartbeat releases it then
                    self.release_control()

    @property
    def has_control(self) -> bool:
        """Whether this client alone may act, as far as it knows."""
        return self._claim.is_held

    @property
    def controlled_by(self) -> Holder | None:
        """The client that alone may act, as of the last heartbeat; None if every client may."""
        server = self._server
        return None if server is None else Holder.told(server.get(CONTROL))

    def _me(self) -> dict[str, Any]:
        return {name: self._presence.info[name] for name in ("name", "host", "pid")}

    def _ask_for_control(self, what: str, payload: Any, timeout_s: float) -> Any:
        return self._requests.call(CONTROL, what, payload, timeout_s)

    def _control_timeout_s(self) -> float:
        """Programs set ``timeout_ms`` for actions, to a few milliseconds if need be."""
        return max(self.timeout_ms / 1000, REQUEST_S)

    def _on_beat(self, channel: Channel) -> None:
        super()._on_beat(channel)
        self._claim.look(self._requests.caller.hex(), self._server)

    def stop(self) -> None:
        """Stop and say goodbye; others may act from then on."""
        if not self._stopping.is_set():
            with contextlib.suppress(AgentlaceError):  # else the server misses its presence
                self._claim.release(REQUEST_S)
        super().stop()
