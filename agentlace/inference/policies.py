"""The policies of an inference server: what it offers, what each takes, and with which network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentlace.config import BadSetting, BrokerURL, InferenceConfig
from agentlace.errors import SchemaMismatch
from agentlace.inference import specs
from agentlace.inference.catalogue import Catalogue
from agentlace.inference.interface import Function, Interface
from agentlace.inference.runner import Runner
from agentlace.inference.weights import Callback, Weights, trainer_number
from agentlace.service import Server
from agentlace.telemetry import Sample
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.replies import Answer


class PolicyServer(Server):
    """The part of an inference server that has its policies.

    Attributes:
        interfaces: by what clients may call.
    """

    def __init__(
        self,
        port_num: int,
        log_level: int,
        broker: str | BrokerURL | None,
        follow_weights: str | int | None,
        weights: Any,
        prepare_weights: Callback | None,
    ) -> None:
        super().__init__("inference", InferenceConfig(port_num), broker, log_level)
        self._trainer = trainer_number(follow_weights)
        self._has_weights = self._trainer is not None or weights is not None
        self._weights = Weights(weights, prepare_weights)
        self._runner = Runner(self._weights)
        self.interfaces = Catalogue()

    def register_interface(
        self, name: str, callback: Function, default: bool = True, **settings: Any
    ) -> None:
        """Offer ``callback(payload)`` under a name; before or after ``start``.

        Args:
            name: what clients call.
            callback: answers a payload with a tree. With ``batch=True`` it answers several:
                arrays have a leading dimension, and its reply's arrays must have the same.
            default: whether calls that name no version get this one from now on. The first
                version of a name is its default in any case.
            settings: fields of :class:`~agentlace.inference.interface.Interface`.

        Raises:
            BadSetting: a field's value is wrong; the message names it.
            SchemaMismatch: what is declared of payloads or replies may not travel.
        """
        interface = Interface(name, callback, **settings)
        if interface.uses_weights and not self._has_weights:
            problem = "this server has none: give it follow_weights='trainer', or weights="
            raise BadSetting(f"uses_weights of interface {name!r}", True, problem)
        self.interfaces.add(interface, default)
        life, offers = self._presence, self._offers()
        if life is not None and life.info.get("specs") != offers["specs"]:
            life.info.update(offers)  # goes out with the next beat
        self._look_out()

    def _look_out(self) -> None:
        """Take note that there is another interface."""

    def on_weights(self, callback: Callback) -> None:
        """Call back with each network, between two calls, before the first that it answers.

        It runs in the thread that answers calls. If it raises, that is logged, and the server
        goes on with the network before. Register it before ``start``.
        """
        self._weights.on_change(callback)

    @property
    def refused_network(self) -> SchemaMismatch | None:
        """Why the trainer's newest network was refused; None if it was not, or a later one fits."""
        return self._weights.refused

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what == "interfaces":
            return self.interfaces.names
        if what == "describe":
            return self.interfaces.describe()
        interface = self.interfaces.get(name) if what == "call" else None
        return (
            self.interfaces.unknown(name) if interface is None else self._call(interface, payload)
        )

    def _call(self, interface: Interface, payload: Any) -> Answer:
        """Call an interface's function, with one payload or with several that are stacked."""
        shapes, is_one = interface.shapes, not interface.batch
        if is_one:
            shapes.check(payload)
        fn, about = self._runner.ready(interface)
        reply = fn(payload)
        if is_one and not shapes.is_known:
            shapes.learn(payload, reply)
        return Answer(reply, about)

    def _offers(self) -> dict[str, Any]:
        return {"specs": specs.digest_of(self.interfaces.describe())}

    def _start_workers(self, broker: Broker) -> None:
        if self._trainer is not None:
            keys = ServiceKeys(self._url.namespace, "trainer", self._trainer)
            self._weights.follow(broker, keys)

    def _stop_workers(self) -> None:
        self._weights.stop()

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        yield from self._weights.measure()
