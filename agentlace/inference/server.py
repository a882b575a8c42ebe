"""The serving end: interfaces that answer calls."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from agentlace.config import BrokerURL
from agentlace.inference.engine import Engine
from agentlace.inference.policies import PolicyServer
from agentlace.inference.weights import Callback
from agentlace.service.sigterm import OnSigterm
from agentlace.telemetry import Sample
from agentlace.transport import presence
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.inflight import Intake
from agentlace.transport.replicas import Replicas
from agentlace.transport.request_server import JOIN_TIMEOUT_S, RequestServer

PLACES = 2048
"""So many calls at most are in a server, waiting or under way; the others wait at the broker."""
DRAIN_S = 30.0
"""On SIGTERM, so long is taken to answer what was taken."""


class InferenceServer(PolicyServer):
    """Answers calls of its interfaces: one after the other, or several in one batch.

    Several servers of one number, with the same interfaces, share the calls. If one of them is
    lost, the others see to the calls that it had taken. docs/inference.md explains all of it.

    Functions never run at the same time. ``start()`` in the main thread takes SIGTERM: then the
    server drains, and the signal takes its way.

    Args:
        port_num: names the service; no port is opened.
        log_level: of the logger ``agentlace.inference``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.
        follow_weights: a trainer, whose newest network the interfaces work with: ``"trainer"``,
            ``"trainer:5555"`` with its ``port_number``, or the number.
        weights: network to work with until the trainer has published one, or for good without a
            trainer. A network that differs from it in structure, shape or dtype is refused.
        prepare_weights: called with each network once, beside the calls; its result is what the
            interfaces get (such as ``jax.device_put``).

    Raises:
        BadSetting: ``follow_weights`` names no trainer.
    """

    exclusive = False

    def __init__(
        self,
        port_num: int,
        log_level: int = logging.WARNING,
        broker: str | BrokerURL | None = None,
        follow_weights: str | int | None = None,
        weights: Any = None,
        prepare_weights: Callback | None = None,
    ) -> None:
        service = port_num, log_level, broker
        super().__init__(*service, follow_weights, weights, prepare_weights)
        self._engine: Engine | None = None
        self._replicas: Replicas | None = None
        self._patience_s = JOIN_TIMEOUT_S
        self._on_sigterm = OnSigterm(self.drain, f"drain of {self._keys.name}")

    def start(self, threaded: bool = False) -> None:
        """Start to serve, as any server does; and drain on SIGTERM, if this is the main thread."""
        self._on_sigterm.install()
        try:
            super().start(threaded)
        except BaseException:
            self._on_sigterm.give_back()
            raise

    def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Take no more calls, answer those that were taken, and stop.

        Blocks until then, or until ``timeout_s`` is over: then those that have not begun are
        given to other servers, and one that is under way as if this server had been lost.
        :meth:`stop` does the same with a few seconds.
        """
        self._patience_s = timeout_s
        try:
            self.stop()
        finally:
            self._patience_s = JOIN_TIMEOUT_S

    def stop(self) -> None:
        """Stop serving and say goodbye; as :meth:`drain`, within a few seconds. Idempotent."""
        super().stop()
        self._on_sigterm.give_back()

    def _presence_of(self, broker: Broker, info: presence.Info) -> presence.Presence:
        token = info["token"]
        self._intake = Intake(self._keys, token, PLACES)
        self._replicas = Replicas(self._keys, token, self._intake, self._may_repeat)
        return presence.Presence(
            *(broker, self._keys.replica(token), info, self._keys.seen),
            on_beat=self._on_beat,
            telemetry=self.telemetry,
            shared=self._keys.server,
            on_leave=self._replicas.leave,
        )

    def _requests_of(self, broker: Broker, token: str) -> RequestServer:
        self._engine = Engine(
            *(broker, self._keys, self._handle, token, self._intake),
            *(self.interfaces, self._call, self._others),
        )
        self._look_out()
        return self._engine

    def _look_out(self) -> None:
        """Have the engine do what the interfaces need."""
        if self._engine is None:
            return
        registered = list(self.interfaces.values())
        if any(i.is_queued for i in registered):
            self._engine.look_out()
        if any(i.is_queued or i.idempotent for i in registered):
            self._intake.wanted = True

    def _start_workers(self, broker: Broker) -> None:
        super()._start_workers(broker)
        if self._replicas is not None:
            with contextlib.closing(broker.channel(key=self._keys.prefix)) as channel:
                self._replicas.look(channel)

    def _may_repeat(self, name: str) -> bool:
        interface = self.interfaces.get(name)
        return interface is not None and interface.idempotent

    def _others(self) -> int:
        return 0 if self._replicas is None else self._replicas.others

    def _on_beat(self, channel: Channel) -> None:
        if self._replicas is not None:
            self._replicas.look(channel)

    def _halt(self) -> None:
        if self._requests is not None:
            self._requests.stop(self._patience_s)
        self._stop_workers()

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        engine, replicas = self._engine, self._replicas
        if engine is not None:
            yield Sample("requests_waiting", len(engine.desk.queue))
            yield Sample("requests_refused_total", engine.desk.refused)
            yield Sample("requests_superseded_total", engine.desk.superseded)
            yield Sample("batches_total", engine.batches)
            yield Sample("requests_batched_total", engine.batched)
        if replicas is not None:
            yield Sample("requests_taken_over_total", replicas.given)
