"""A snapshot in the text format that Prometheus reads: the whole system from one place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from agentlace.metrics.exposition import Families, registry_of
from agentlace.operating.peers import Peer
from agentlace.operating.snapshot import Snapshot
from agentlace.operating.stores import StoreState
from agentlace.telemetry import METRICS, Metric, Sample

FRESH_S = 1.0
"""A snapshot is shown for so long: several scrapers must not multiply its cost."""

SYSTEM: dict[str, Metric] = {
    "up": Metric("gauge", "Whether the node is there and its heartbeat in time."),
    "heartbeat_age_seconds": Metric("gauge", "Seconds since the node's last heartbeat."),
    "idle_seconds": Metric("gauge", "Seconds since the node counted anything."),
    "waiting": Metric("gauge", "How many things the node waits for."),
    "node_info": Metric("gauge", "Always 1; the labels say where the node runs."),
    "stream_bytes": Metric("gauge", "Bytes of an actor's stream."),
    "stream_budget_bytes": Metric("gauge", "Bytes that the streams of a store may have."),
    "consumer_lag_transitions": Metric("gauge", "Transitions that a consumer has not applied."),
    "consumer_up": Metric("gauge", "Whether a consumer gave a sign of life within its lease."),
    "broker_memory_bytes": Metric("gauge", "Memory that the broker uses."),
    "broker_memory_limit_bytes": Metric("gauge", "The broker's maxmemory; 0 for none."),
    "broker_connections": Metric("gauge", "Connections of the broker."),
    "broker_uptime_seconds": Metric("gauge", "Seconds since the broker was started."),
    "broker_round_trip_seconds": Metric("gauge", "A ping from here to the broker and back."),
    "broker_keys_bytes": Metric("gauge", "Memory of the namespace's keys, by pattern."),
}
"""Names that only the whole system has, without their prefix."""


def families(snapshot: Snapshot) -> list[Any]:
    """Return a snapshot's numbers: what nodes say of themselves, and what the broker says."""
    found = Families({**METRICS, **SYSTEM})
    for peer in snapshot.peers:
        labels = {"service": peer.service, "node": peer.name, "role": peer.does}
        found.add([*peer.samples, *_of_peer(peer)], labels)
        place = {"host": peer.host, "version": peer.version}
        found.add([Sample("node_info", 1.0, place)], labels)
    for store in snapshot.stores:
        found.add(_of_store(store), {"service": store.service, "store": store.name})
    found.add(_of_broker(snapshot), {"namespace": snapshot.namespace})
    return found.all()


def exposition(snapshot: Snapshot) -> bytes:
    """Return a snapshot's numbers as text; raises MissingExtra without prometheus_client."""
    registry = registry_of(lambda: families(snapshot))
    from prometheus_client import generate_latest

    text: bytes = generate_latest(registry)
    return text


def live_registry(look: Callable[[], Snapshot]) -> Any:
    """Return a registry of prometheus_client that looks at each scrape, once in FRESH_S."""
    lock = threading.Lock()
    last: tuple[float, list[Any]] = (-FRESH_S, [])

    def collect() -> list[Any]:
        nonlocal last
        with lock:
            if time.monotonic() - last[0] >= FRESH_S:
                last = (time.monotonic(), families(look()))
            return last[1]

    return registry_of(collect)


def _of_peer(peer: Peer) -> list[Sample]:
    found = [
        Sample("up", float(peer.is_there and not peer.is_late)),
        Sample("heartbeat_age_seconds", peer.beat_s),
        Sample("waiting", float(len(peer.waits))),
    ]
    if peer.idle_s is not None:
        found.append(Sample("idle_seconds", peer.idle_s))
    return found


def _of_store(store: StoreState) -> list[Sample]:
    found = [Sample("stream_budget_bytes", store.budget_bytes)]
    for stream in store.streams:
        found.append(Sample("stream_bytes", stream.nbytes, {"actor": stream.actor}))
    for consumer in store.consumers:
        labels = {"consumer": consumer.name}
        found.append(Sample("consumer_lag_transitions", consumer.behind, labels))
        found.append(Sample("consumer_up", float(consumer.is_alive), labels))
    return found


def _of_broker(snapshot: Snapshot) -> list[Sample]:
    broker = snapshot.broker
    return [
        Sample("broker_memory_bytes", broker.used_bytes),
        Sample("broker_memory_limit_bytes", broker.max_bytes),
        Sample("broker_connections", broker.clients),
        Sample("broker_uptime_seconds", broker.uptime_s),
        Sample("broker_round_trip_seconds", broker.round_trip_s),
        *(
            Sample("broker_keys_bytes", nbytes, {"pattern": pattern})
            for pattern, nbytes in broker.keys_bytes.items()
        ),
    ]
