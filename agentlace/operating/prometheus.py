"""A snapshot in the text format that Prometheus reads: the whole system from one place."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from agentlace.errors import AgentlaceError
from agentlace.logs import about
from agentlace.metrics.exposition import Families, registry_of
from agentlace.operating.peers import Peer
from agentlace.operating.snapshot import Snapshot
from agentlace.operating.stores import StoreState
from agentlace.telemetry import METRICS, Metric, Sample

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRESH_S = 1.0
"""A snapshot is shown for so long: several scrapers must not multiply its cost."""

SYSTEM: dict[str, Metric] = {
    "up": Metric("gauge", "Whether the node is there and its heartbeat in time."),
    "heartbeat_age_seconds": Metric("gauge", "Seconds since the node's last heartbeat."),
    "idle_seconds": Metric("gauge", "Seconds since the node counted anything."),
    "waiting": Metric("gauge", "How many things the node waits for."),
    "node_info": Metric("gauge", "Always 1; the labels say which process and version it is."),
    "stream_bytes": Metric("gauge", "Bytes of an actor's stream."),
    "stream_budget_bytes": Metric("gauge", "Bytes that the streams of a store may have."),
    "consumer_lag_transitions": Metric("gauge", "Transitions that a consumer has not applied."),
    "consumer_up": Metric("gauge", "Whether a consumer gave a sign of life within its lease."),
    "broker_up": Metric("gauge", "Whether the broker could be read."),
    "broker_memory_bytes": Metric("gauge", "Memory that the broker uses."),
    "broker_memory_limit_bytes": Metric("gauge", "The broker's maxmemory; 0 for none."),
    "broker_connections": Metric("gauge", "Connections of the broker."),
    "broker_uptime_seconds": Metric("gauge", "Seconds since the broker was started."),
    "broker_round_trip_seconds": Metric("gauge", "A ping from here to the broker and back."),
    "broker_keys_bytes": Metric("gauge", "Memory of the namespace's keys, by pattern."),
}
"""Names that only the whole system has, without their prefix."""


def families(snapshot: Snapshot | None) -> list[Any]:
    """Return a snapshot's numbers: what nodes say of themselves, and what the broker says.

    Args:
        snapshot: None if the broker is away, which is then all that is told.
    """
    found = Families({**METRICS, **SYSTEM})
    if snapshot is None:
        found.add([Sample("broker_up", 0.0)], {})
        return found.all()
    names = Counter((peer.service, peer.name) for peer in snapshot.peers)
    for peer in snapshot.peers:
        # Several servers of one service are called alike.
        is_alone = names[peer.service, peer.name] == 1
        node = peer.name if is_alone else f"{peer.name}#{peer.pid}"
        labels = {"service": peer.service, "node": node, "role": peer.does, "host": peer.host}
        found.add(_of_peer(peer), labels)
    for store in snapshot.stores:
        found.add(_of_store(store), {"service": store.service, "store": store.name})
    found.add([Sample("broker_up", 1.0)], {})
    found.add(_of_broker(snapshot), {"namespace": snapshot.namespace})
    return found.all()


def exposition(snapshot: Snapshot | None) -> bytes:
    """Return a snapshot's numbers as text of CONTENT_TYPE; of None that the broker is away.

    Raises:
        MissingExtra: prometheus_client is not installed.
    """
    registry = registry_of(lambda: families(snapshot))
    from prometheus_client import generate_latest

    text: bytes = generate_latest(registry)
    return text


def live_registry(look: Callable[[], Snapshot]) -> Any:
    """Return a registry of prometheus_client that looks at each scrape, once in FRESH_S.

    Args:
        look: takes a snapshot. While it raises an AgentlaceError, which is logged once, the page
            says that the broker is away.
    """
    lock = threading.Lock()
    last: tuple[float, list[Any]] = (-FRESH_S, [])
    is_away = False

    def looked() -> Snapshot | None:
        nonlocal is_away
        try:
            snapshot = look()
        except AgentlaceError as error:
            if not is_away:
                log.warning("there are no numbers: %s", error, extra=about(error=error))
            is_away = True
            return None
        is_away = False
        return snapshot

    def collect() -> list[Any]:
        nonlocal last
        with lock:
            if time.monotonic() - last[0] >= FRESH_S:
                found = families(looked())
                last = time.monotonic(), found
            return last[1]

    return registry_of(collect)


def _of_peer(peer: Peer) -> list[Sample]:
    """Return a node's numbers; of one that is gone, only that it is."""
    found = [
        Sample("up", float(peer.is_there and not peer.is_late)),
        Sample("heartbeat_age_seconds", peer.beat_s),
    ]
    if not peer.is_there:
        return found
    found.append(Sample("waiting", float(len(peer.waits))))
    found.append(Sample("node_info", 1.0, {"pid": str(peer.pid), "version": peer.version}))
    if peer.idle_s is not None:
        found.append(Sample("idle_seconds", peer.idle_s))
    return [*found, *peer.samples]


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
