"""Each node as the page shows it, and what is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from agentlace.dashboard.history import rounded
from agentlace.operating import Peer, Snapshot, StoreState
from agentlace.operating.snapshot import Series

IDLE_S = 10.0
"""A node that has counted nothing for so long is shown as idle."""
FULL = 0.8
"""A stream budget or a broker's memory of which so much is used is a problem."""
NAMED_MAX = 3
"""So many nodes with the same problem are named, the others counted."""
BAD, WARNING = "bad", "warning"
COUNTED = {
    "actor": ("transitions_sent_total", "transitions"),
    "trainer": ("transitions_applied_total", "transitions"),
    "recorder": ("transitions_applied_total", "transitions"),
    "action": ("requests_answered_total", "requests"),
    "inference": ("requests_answered_total", "requests"),
}
"""What the rate of a node is of; of others it is the requests that they make."""
DROPS = {
    "transitions_lost_total": "transitions overwritten before they were sent",
    "transitions_dropped_total": "transitions dropped unread at the broker",
    "transitions_rejected_total": "transitions refused by the store",
    "transitions_missing_total": "transitions missing in a stream",
    "requests_expired_total": "requests dropped after their deadline",
    "requests_unreadable_total": "requests that could not be read",
    "requests_failed_total": "requests without an answer",
    "observations_missed_total": "observations missed",
}

Doc = dict[str, Any]
ByNode = Mapping[tuple[str, str], Mapping[str, float]]


def by_node(rates: Mapping[Series, float]) -> ByNode:
    """Return the rates of each node, by service and name, over all labels."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (service, name, metric, _), rate in rates.items():
        found[service, name][metric] += rate
    return found


def node_id(peer: Peer) -> str:
    """Return what tells a node from all others, also after it was restarted."""
    return f"{'server' if peer.is_server else 'client'} {peer.service} {peer.name}"


def state_of(peer: Peer, is_paused: bool) -> str:
    """Return ``gone``, ``late``, ``waits``, ``paused``, ``idle`` or ``ok``."""
    if not peer.is_there:
        return "gone"
    if peer.is_late:
        return "late"
    if is_paused:
        return "paused"
    if peer.waits:
        return "waits"
    return "idle" if (peer.idle_s or 0.0) > IDLE_S else "ok"


def node(peer: Peer, rates: ByNode, is_paused: bool) -> Doc:
    """Return a node as the page shows it.

    Args:
        peer: the node.
        rates: of all nodes.
        is_paused: whether it stands still because its trainer wants that.
    """
    metric, counted = COUNTED.get(peer.does, ("requests_made_total", "requests"))
    mine = rates.get((peer.service, peer.name), {})
    drops = [peer.value(name) or 0.0 for name in DROPS if name.startswith("transitions")]
    return {
        "id": node_id(peer),
        **{"service": peer.service, "name": peer.name, "does": peer.does},
        **{"host": peer.host, "pid": peer.pid, "version": peer.version},
        "state": state_of(peer, is_paused),
        "beat_s": round(peer.beat_s, 1),
        "idle_s": None if peer.idle_s is None else round(peer.idle_s, 1),
        "waits": list(peer.waits),
        "rate": rounded(mine.get(metric)),
        "counted": counted,
        "pending": peer.value("transitions_pending"),
        "policy": peer.value("network_version"),
        "policy_age_s": rounded(peer.value("network_age_seconds")),
        "lost": sum(drops),
    }


def problems(snapshot: Snapshot) -> list[Doc]:
    """Return what is wrong, the worst first: level, whose, and text."""
    found = [*_of_broker(snapshot), *_of_servers(snapshot), *_of_late(snapshot)]
    for store in snapshot.stores:
        found += _of_store(store)
    for peer in snapshot.peers:
        if peer.is_there:
            found += [_problem(WARNING, peer.name, f"waits: {text}") for text in peer.waits]
    return sorted(found, key=lambda problem: problem["level"] != BAD)


def _problem(level: str, who: str, text: str) -> Doc:
    return {"level": level, "who": who, "text": text}


def _of_broker(snapshot: Snapshot) -> Iterator[Doc]:
    broker = snapshot.broker
    share = broker.used_bytes / broker.max_bytes if broker.max_bytes else 0.0
    if share > FULL:
        yield _problem(BAD, "broker", f"{share:.0%} of its memory is used")
    if broker.policy not in ("", "noeviction"):
        text = f"it removes data when it is full ({broker.policy}): set maxmemory-policy noeviction"
        yield _problem(BAD, "broker", text)


def _of_servers(snapshot: Snapshot) -> Iterator[Doc]:
    """Tell of servers that are gone though somebody needs them."""
    for service in dict.fromkeys(peer.service for peer in snapshot.peers):
        server, clients = snapshot.server(service), snapshot.clients(service)
        if clients and (server is None or not server.is_there):
            since = f"gone for {_duration(server.beat_s)}" if server else "not there"
            text = f"{since}, and {len(clients)} {_nodes(clients)} it"
            yield _problem(BAD, service, text)


def _nodes(clients: list[Peer]) -> str:
    return "nodes need" if len(clients) > 1 else "node needs"


def _of_late(snapshot: Snapshot) -> Iterator[Doc]:
    late = [peer for peer in snapshot.peers if peer.is_late]
    text = "does not beat for {}: it is stopped, stuck or cut off"
    if len(late) <= NAMED_MAX:
        for peer in late:
            yield _problem(BAD, peer.name, text.format(_duration(peer.beat_s)))
        return
    names = ", ".join(peer.name for peer in late[:NAMED_MAX])
    longest = _duration(max(peer.beat_s for peer in late))
    others = f"{names} and {len(late) - NAMED_MAX} more"
    yield _problem(BAD, f"{len(late)} nodes", f"do not beat, for up to {longest}: {others}")


def _of_store(store: StoreState) -> Iterator[Doc]:
    share = store.nbytes / store.budget_bytes if store.budget_bytes else 0.0
    who = f"store {store.name}"
    if share > FULL:
        then = "actors then wait" if store.when_full == "block" else "the oldest are then dropped"
        yield _problem(BAD, who, f"its streams use {share:.0%} of their budget; {then}")
    for consumer in store.consumers:
        if consumer.behind and not consumer.is_alive:
            since = _duration(consumer.seen_s) if consumer.seen_s is not None else "days"
            text = f"{consumer.name} is {consumer.behind:,} transitions behind and silent for "
            yield _problem(BAD, who, f"{text}{since}")


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
