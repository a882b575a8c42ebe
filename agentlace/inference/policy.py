"""Which policy made an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ABOUT = "policy"
"""Under this name a reply's meta says it."""


class PolicyVersion(NamedTuple):
    """Which policy made an answer.

    Attributes:
        interface: its name.
        version: of the interface.
        network: number of the trainer's network; None if it was made without one.
        trainer_began_ms: tells networks of a restarted trainer from its predecessor's, whose
            numbers may be the same; 0 without a network.
    """

    interface: str
    version: str
    network: int | None = None
    trainer_began_ms: int = 0

    def __str__(self) -> str:
        """Return ``policy@2`` or ``policy@2 network 17``."""
        made_with = "" if self.network is None else f" network {self.network}"
        return f"{self.interface}@{self.version}{made_with}"

    def told(self) -> dict[str, Any]:
        """Return what a reply's meta says."""
        return {ABOUT: list(self)}


class PolicyAnswer(NamedTuple):
    """An interface's answer, and which policy made it: None if the server does not say so."""

    value: Any
    policy: PolicyVersion | None


def policy_in(meta: Mapping[str, Any]) -> PolicyVersion | None:
    """Return which policy made the reply with this meta, None if it does not say so."""
    told = meta.get(ABOUT)
    if type(told) is not list or len(told) != len(PolicyVersion._fields):
        return None
    name, version, network, began_ms = told
    fits = type(name) is str and type(version) is str and type(began_ms) is int
    if not fits or type(network) not in (int, type(None)):
        return None
    return PolicyVersion(name, version, network, began_ms)
