"""The serving end: interfaces that answer calls."""

from __future__ import annotations

import logging
from typing import Any

from agentlace.config import BrokerURL, InferenceConfig
from agentlace.inference.interface import Function, Interface
from agentlace.service import Server


class InferenceServer(Server):
    """Answers calls of its interfaces, one after the other.

    Several servers of one number, with the same interfaces, share the calls.

    Args:
        port_num: names the service; no port is opened.
        log_level: of the logger ``agentlace.inference``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.
    """

    exclusive = False

    def __init__(
        self,
        port_num: int,
        log_level: int = logging.WARNING,
        broker: str | BrokerURL | None = None,
    ) -> None:
        super().__init__("inference", InferenceConfig(port_num), broker, log_level)
        self.interfaces: dict[str, Interface] = {}

    def register_interface(self, name: str, callback: Function, **settings: Any) -> None:
        """Offer ``callback(payload)`` under a name; before or after ``start``.

        Args:
            name: what clients call.
            callback: answers a payload with a tree.
            settings: fields of :class:`~agentlace.inference.interface.Interface`.

        Raises:
            BadSetting: a field's value is wrong; the message names it.
        """
        self.interfaces[name] = Interface(name, callback, **settings)

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what == "interfaces":
            return sorted(self.interfaces)
        if what == "call" and name in self.interfaces:
            return self.interfaces[name].fn(payload)
        known = ", ".join(map(repr, sorted(self.interfaces))) or "none"
        return {"success": False, "message": f"unknown interface {name!r}; this server has {known}"}
