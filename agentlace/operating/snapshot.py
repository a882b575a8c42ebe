"""The whole system at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agentlace.operating.asking import ask
from agentlace.operating.brokers import BrokerState, broker_state
from agentlace.operating.peers import Peer, peers
from agentlace.operating.stores import StoreState, store_state
from agentlace.telemetry import METRICS, Sample
from agentlace.transport.connection import Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.lag import keys_of, service_of, store_keys

Series = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""Whose counter: service, node, name, labels."""


@dataclass(frozen=True)
class Snapshot:
    """The system at one moment.

    Attributes:
        at_ms: when, in the broker's time.
        namespace: which of the broker's.
        broker: the broker.
        peers: all nodes, by service, the server first.
        stores: all stores with their streams.
        queues: by service, how many requests wait for its server.
    """

    at_ms: float
    namespace: str
    broker: BrokerState
    peers: tuple[Peer, ...]
    stores: tuple[StoreState, ...]
    queues: dict[str, int] = field(default_factory=dict)

    def server(self, service: str) -> Peer | None:
        """Return the server of a service, also one that is gone; None if none is known."""
        return next((p for p in self.peers if p.is_server and p.service == service), None)

    def clients(self, service: str) -> list[Peer]:
        """Return the clients of a service."""
        return [p for p in self.peers if not p.is_server and p.service == service]


def take(channel: Channel, namespace: str) -> Snapshot:
    """Read how the system stands; a few dozen round trips, and nothing is changed.

    Args:
        channel: to the broker, as a user that may read everything, such as ``observer``.
        namespace: which of the broker's.

    Raises:
        BrokerUnreachable: the broker is away.
        BrokerAuthFailed: this user may not read what is needed.
    """
    keys = keys_of(channel, namespace)
    nodes = peers(channel, namespace, keys)
    told = {p.service: p.stores for p in nodes if p.is_server}
    found = dict.fromkeys(store_keys(key, namespace) for key in keys)
    stores = [
        store_state(channel, store, told.get(service_of(store), {}).get(store.name))
        for store in found
        if store is not None
    ]
    broker = broker_state(channel, keys)
    queues = _queues(channel, namespace, {peer.service for peer in nodes})
    now_ms = channel.broker.now_ms()
    return Snapshot(now_ms, namespace, broker, tuple(nodes), tuple(stores), queues)


def _queues(channel: Channel, namespace: str, services: set[str]) -> dict[str, int]:
    names = sorted(services)
    parts = [name.split(":") for name in names]
    keys = [ServiceKeys(namespace, kind, int(port)).requests for kind, port in parts]
    lengths = zip(names, ask(channel, keys, "LLEN"), strict=True)
    return {name: length for name, length in lengths if isinstance(length, int)}


def rates(before: Snapshot, after: Snapshot) -> dict[Series, float]:
    """Return how much each counter grew per second between two snapshots.

    They are exact: of the time between the two heartbeats that told the numbers. A node has none
    if it was not there before, or has told nothing since; it does so once a second.
    """
    old = {peer.token: peer for peer in before.peers}
    return {
        series: rate
        for peer in after.peers
        if peer.token in old
        for series, rate in _grown(old[peer.token], peer)
    }


def _grown(before: Peer, after: Peer) -> Iterator[tuple[Series, float]]:
    seconds = (after.told_ms - before.told_ms) / 1000
    if seconds <= 0:
        return
    old = dict(_counters(before))
    for series, value in _counters(after):
        if series in old:
            yield series, max(value - old[series], 0.0) / seconds


def _counters(peer: Peer) -> Iterator[tuple[Series, float]]:
    for sample in peer.samples:
        if _is_counter(sample):
            labels = tuple(sorted(sample.labels.items()))
            yield (peer.service, peer.name, sample.name, labels), sample.value


def _is_counter(sample: Sample) -> bool:
    return sample.name in METRICS and METRICS[sample.name].kind == "counter"
