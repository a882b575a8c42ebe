"""The network that a server's interfaces work with: its own, or the newest of a trainer."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from agentlace.codec import Signature
from agentlace.config import BadSetting, TrainerConfig
from agentlace.errors import DecodeError, NotReady, SchemaMismatch
from agentlace.logs import about
from agentlace.telemetry import Sample
from agentlace.transport import presence
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.weights import Manifest, Version, newest_manifest
from agentlace.transport.weights_receiver import WeightsReceiver

log = logging.getLogger(__name__)

FIRST_WAIT_S = 3.0
"""A server waits so long, when it starts, for a network that the broker has."""
TRAINER = "trainer"

Callback = Callable[[Any], Any]


class Network(NamedTuple):
    """What interfaces work with.

    Attributes:
        weights: what they get.
        version: of the trainer's network; None for the server's own.
    """

    weights: Any
    version: Version | None


def trainer_number(follow: object) -> int | None:
    """Return the number of the trainer that ``"trainer"``, ``"trainer:5555"`` or a number names.

    Raises:
        BadSetting: it names none.
    """
    if follow is None or (type(follow) is int and follow >= 0):
        return follow
    if isinstance(follow, str):
        kind, colon, number = follow.partition(":")
        if kind == TRAINER and not colon:
            return TrainerConfig().port_number
        if kind == TRAINER and number.isdecimal():
            return int(number)
    problem = "name a trainer: 'trainer', 'trainer:5555' (its port_number), or the number"
    raise BadSetting("follow_weights", follow, problem)


class Weights:
    """The network in use. It changes between calls, never during one.

    Threads: a receiver fetches and prepares a network and leaves it here; the thread that answers
    calls takes it up before its next call.

    Args:
        initial: network to begin with; others must be like it. None to wait for the trainer's.
        prepare: called with each network once; its result is what interfaces get.
    """

    def __init__(self, initial: Any = None, prepare: Callback | None = None) -> None:
        self._prepare = prepare or (lambda weights: weights)
        self._check = None if initial is None else Signature(initial).check
        self._newest: Network | None = None
        if initial is not None:
            self._newest = Network(self._prepare(initial), None)
        self._in_use: Network | None = None
        self._rejected: Network | None = None
        self._callbacks: list[Callback] = []
        self._receiver: WeightsReceiver | None = None
        self._trainer = ""

    def on_change(self, callback: Callback) -> None:
        """Also call back with each network, before the first call that it answers."""
        self._callbacks.append(callback)

    def current(self) -> Network | None:
        """Return the network for the next call, None before there is one.

        For the thread that answers calls; takes up the newest one.
        """
        newest = self._newest
        if newest is not self._in_use and newest is not self._rejected:
            self._take_up(newest)
        return self._in_use

    def _take_up(self, network: Network | None) -> None:
        """Change over, unless a callback raises."""
        if network is None:
            return
        try:
            for callback in self._callbacks:
                callback(network.weights)
        except Exception:
            text = "a callback raised with network %s; the one before it stays"
            log.exception(text, network.version, extra=about())
            self._rejected = network
            return
        self._in_use = network

    def not_ready(self, asked: str) -> NotReady:
        """Return the error of an interface that needs a network before there is one."""
        return NotReady(
            f"{asked} waits for its first network: {self._trainer} has published none since it "
            "started, or is not running"
        )

    # -- following a trainer --

    def follow(self, broker: Broker, keys: ServiceKeys) -> None:
        """Begin to receive a trainer's networks; waits for the one that the broker has."""
        self._trainer = keys.name
        arrived = threading.Event()

        def take(tree: Any) -> None:
            try:
                self._newest = Network(self._prepare(tree), receiver.version)
            finally:
                arrived.set()

        receiver = WeightsReceiver(
            broker, keys, take, self._check, on_refused=lambda error: arrived.set()
        )
        self._receiver = receiver
        is_there = self._begin_after(broker, keys, receiver)
        receiver.start()
        if is_there and not arrived.wait(FIRST_WAIT_S):
            text, fields = "the network of %s takes longer than %g s", about(keys.labels)
            log.warning(text, keys.name, FIRST_WAIT_S, extra=fields)
        elif not is_there:
            log.warning("%s has published no network yet", keys.name, extra=about(keys.labels))

    def _begin_after(self, broker: Broker, keys: ServiceKeys, receiver: WeightsReceiver) -> bool:
        """Leave out what a predecessor of the running trainer has left; whether more is there.

        Without a trainer the newest network that the broker has will do.
        """
        server: presence.Info = {}
        manifest: Manifest | None = None
        try:
            with contextlib.closing(broker.channel(key=keys.prefix)) as channel:
                server = presence.read_peer(channel, keys.server) or {}
                manifest = newest_manifest(channel, keys)
        except DecodeError as error:
            log.warning("%s: %s", keys.name, error, extra=about(keys.labels, error=error))
        known = self._newest and self._newest.version
        receiver.version = max(Version(server.get("began_ms", 0), 0), known or Version(0, 0))
        return manifest is not None and manifest.version > receiver.version

    @property
    def refused(self) -> SchemaMismatch | None:
        """Why the trainer's newest network was refused; None if it was not."""
        return None if self._receiver is None else self._receiver.refusal

    def measure(self) -> Iterator[Sample]:
        """Yield which network is in use, and how old."""
        network, receiver = self._in_use, self._receiver
        if network is not None and network.version is not None:
            yield Sample("network_version", network.version.number)
        if receiver is not None and receiver.age_s is not None:
            yield Sample("network_age_seconds", receiver.age_s)

    def stop(self) -> None:
        """Stop to follow; the network in use stays. Idempotent."""
        if self._receiver is not None:
            self._receiver.stop()
