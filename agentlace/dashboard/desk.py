"""Where an admin's commands go out to trainers."""

from __future__ import annotations

import contextlib
import re

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed
from agentlace.transport.commands import SAVE, order
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys

TIMEOUT_S = 15.0
SAVE_TIMEOUT_S = 600.0
_TRAINER = re.compile(r"trainer:(\d{1,7})")


class Desk:
    """Commands trainers. Thread-safe: each command has a connection of its own.

    Args:
        url: the broker, as a user that may command: ``operator`` or ``admin``.
    """

    def __init__(self, url: BrokerURL) -> None:
        self._url = url

    def order(self, service: str, what: str, by: str) -> str:
        """Have a trainer do something; blocks until it has. Returns what was done.

        Args:
            service: such as ``trainer:5555``.
            what: ``pause``, ``resume`` or ``save``.
            by: who wants it.

        Raises:
            ValueError: there is no such service, or no such command.
            AgentlaceError: it was not done; the message says why.
        """
        found = _TRAINER.fullmatch(service)
        if found is None:
            raise ValueError(f"no trainer {service[:50]!r}")
        keys = ServiceKeys(self._url.namespace, "trainer", int(found[1]))
        timeout_s = SAVE_TIMEOUT_S if what == SAVE else TIMEOUT_S
        with contextlib.closing(Broker(self._url).channel(key=keys.prefix)) as channel:
            try:
                return order(channel, keys, what, by, timeout_s)
            except BrokerAuthFailed as error:
                if not error.is_forbidden:
                    raise
                raise AgentlaceError(
                    f"user {error.user!r} of the broker may not command trainers: start the "
                    "dashboard with --operator-broker, the address with the user operator"
                ) from error
