"""The whole system at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentlace.operating.brokers import BrokerState, broker_state
from agentlace.operating.peers import Peer, peers
from agentlace.operating.stores import StoreState, store_state
from agentlace.telemetry import METRICS, Sample
from agentlace.transport.connection import Channel
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
    """

    at_ms: float
    namespace: str
    broker: BrokerState
    peers: tuple[Peer, ...]
    stores: tuple[StoreState, ...]

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
    return Snapshot(channel.broker.now_ms(), namespace, broker, tuple(nodes), tuple(stores))


def rates(before: Snapshot, after: Snapshot) -> dict[Series, float]:
    """Return how much each counter grew per second between two snapshots.

    A node that was not there before has none yet.
    """
    seconds = (after.at_ms - before.at_ms) / 1000
    if seconds <= 0:
        return {}
    old = {(token, series): value for token, series, value in _counters(before)}
    return {
        series: max(value - old[token, series], 0.0) / seconds
        for token, series, value in _counters(after)
        if (token, series) in old
    }


def _counters(snapshot: Snapshot) -> Iterator[tuple[str, Series, float]]:
    for peer in snapshot.peers:
        for sample in peer.samples:
            if _is_counter(sample):
                labels = tuple(sorted(sample.labels.items()))
                yield peer.token, (peer.service, peer.name, sample.name, labels), sample.value


def _is_counter(sample: Sample) -> bool:
    return sample.name in METRICS and METRICS[sample.name].kind == "counter"
