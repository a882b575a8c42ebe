"""The calling end: a thin device asks a policy that runs elsewhere."""

from __future__ import annotations

import logging
from typing import Any

from agentlace.config import BrokerURL, InferenceConfig
from agentlace.errors import BrokerUnreachable
from agentlace.service import SOFT_ERRORS, Client
from agentlace.transport.requests import RequestClient

log = logging.getLogger(__name__)


class InferenceClient(Client):
    """Calls interfaces of an inference server, which need not be there yet.

    Args:
        server_ip: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        port_num: number of the service.
        timeout_ms: deadline of one call.
        strict: raise errors that otherwise give None; default AGENTLACE_STRICT.
        broker: address; else AGENTLACE_BROKER, else ``server_ip``'s.

    Raises:
        BrokerAuthFailed: the broker refuses the user or password.
    """

    def __init__(
        self,
        server_ip: str,
        port_num: int,
        timeout_ms: float = 800,
        strict: bool | None = None,
        broker: str | BrokerURL | None = None,
    ) -> None:
        config = InferenceConfig(port_num)
        super().__init__("inference", server_ip, config, broker, timeout_ms, strict)
        try:
            self._presence.acquire(exclusive=False)
        except BrokerUnreachable as error:
            log.warning("%s", error, extra=self._about(error))
        self._presence.start()

    def interfaces(self) -> set[str]:
        """Return the names of the server's interfaces; empty if there is no server."""
        try:
            return set(self._call("interfaces", "", None) or ())
        except SOFT_ERRORS:  # strict or not: without a server there are none
            return set()

    def call(self, name: str, payload: Any) -> Any:
        """Call an interface and return its reply; None on a timeout (see ``last_error``).

        An unknown interface answers ``{"success": False, "message": …}``. A call must have no
        side effects: it may be executed more than once if the connection is lost.

        Raises:
            EncodeError: a value in the payload may not travel.
        """
        return self._call("call", name, payload)

    def line(self) -> RequestClient:
        """Return a further connection, for calls while one of this client is under way.

        It raises what would give None here. Close it before this client is stopped.
        """
        return RequestClient(self._broker, self._keys, self._server_token, self._requests.family)

    def _call(self, what: str, name: str, payload: Any) -> Any:
        timeout_s = self.timeout_ms / 1000
        return self._softly(self._requests.call, what, name, payload, timeout_s)
