"""Runs interfaces with the network in use, and says which policy that was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from agentlace.inference.interface import Interface
from agentlace.inference.policy import PolicyVersion
from agentlace.inference.weights import Network, Weights


class Ready(NamedTuple):
    """An interface, ready to be run.

    Attributes:
        fn: takes a payload, or several that are stacked.
        about: for the replies' meta: which policy makes them. One object while it is one policy.
    """

    fn: Callable[[Any], Any]
    about: dict[str, Any]


class _Known(NamedTuple):
    """What was worked out for an interface and a network."""

    interface: Interface
    network: Network | None
    ready: Ready


class Runner:
    """Makes interfaces ready to be run. For the thread that answers calls.

    Args:
        weights: what interfaces work with.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._known: dict[str, _Known] = {}

    def ready(self, interface: Interface) -> Ready:
        """Return what runs an interface once, with the newest network.

        Raises:
            NotReady: it uses weights, and there is no network yet.
        """
        network, title = self._weights.current(), interface.title
        known = self._known.get(title)
        if known is None or known.interface is not interface or known.network is not network:
            ready = Ready(self._function(interface, network), _about(interface, network))
            known = self._known[title] = _Known(interface, network, ready)
        return known.ready

    def _function(self, interface: Interface, network: Network | None) -> Callable[[Any], Any]:
        if not interface.uses_weights:
            return interface.fn
        if network is None:
            raise self._weights.not_ready(interface.title)
        return partial(_with_weights, interface.fn, network.weights)


def _with_weights(fn: Callable[..., Any], weights: Any, payload: Any) -> Any:
    return fn(payload, weights)


def _about(interface: Interface, network: Network | None) -> dict[str, Any]:
    version = None if network is None else network.version
    began_ms, number = (0, None) if version is None else version
    return PolicyVersion(interface.name, interface.version, number, began_ms).told()
