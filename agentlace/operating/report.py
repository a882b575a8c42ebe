"""What two snapshots tell together, in plain values: for a screen, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agentlace.operating.peers import Peer
from agentlace.operating.problems import Problem, budget_of, problems
from agentlace.operating.snapshot import Series, Snapshot, rates
from agentlace.operating.stores import StoreState
from agentlace.transport.lag import ConsumerState

DROPS = {
    "transitions_lost_total": "overwritten in the actor's store",
    "transitions_dropped_total": "dropped at the broker",
    "transitions_rejected_total": "refused by the store",
    "transitions_missing_total": "missing in a stream",
    "requests_expired_total": "requests past their deadline",
    "requests_unreadable_total": "requests that could not be read",
    "requests_failed_total": "requests without an answer",
    "networks_superseded_total": "networks superseded",
    "observations_missed_total": "observations missed",
    "actions_refused_total": "actions of clients without control",
}
"""Counters of what did not arrive, each with its reason."""


@dataclass(frozen=True)
class Policy:
    """The network that an actor acts with, or that a trainer has published last.

    Attributes:
        version: its number.
        age_s: seconds since it was published, if that is known.
        behind: how many versions it is behind the newest; 0 for a trainer's own.
    """

    version: int
    age_s: float | None
    behind: int


@dataclass(frozen=True)
class NodeReport:
    """One node.

    Attributes:
        does, name, is_server, host, pid, version: as in :class:`Peer`.
        state: ``alive``, ``late`` (its heartbeat is missing) or ``gone``.
        beat_s: seconds since its last heartbeat.
        progress_s: seconds since it last counted anything, None if it does not say.
        rates: per second, by the name of the counter without ``_total``; ``networks`` are those
            that a trainer published. Empty if it has told nothing between the two snapshots.
        policy: None if it has none.
        lag: transitions that it holds and the broker has not confirmed (an actor), or that it
            has not applied (a trainer or recorder); None for others.
        waits: what it waits for, as sentences without a subject.
        reports: the program's own numbers by name.
    """

    does: str
    name: str
    is_server: bool
    host: str
    pid: int
    version: str
    state: str
    beat_s: float
    progress_s: float | None
    rates: dict[str, float]
    policy: Policy | None
    lag: int | None
    waits: list[str]
    reports: dict[str, float]


@dataclass(frozen=True)
class ServiceReport:
    """A service: its server first, then its clients, by name.

    Attributes:
        queued: requests that wait for the server.
        samples_per_insert: transitions sampled for each one inserted, of the present rates.
    """

    name: str
    queued: int
    samples_per_insert: float | None
    nodes: list[NodeReport]


@dataclass(frozen=True)
class StoreReport:
    """A store's streams.

    Attributes:
        budget_bytes: what they may take at most.
        streams: how many there are, one per actor.
        consumers: who reads them, the slowest first.
    """

    service: str
    name: str
    used_bytes: int
    budget_bytes: int
    when_full: str
    streams: int
    consumers: list[ConsumerState]


@dataclass(frozen=True)
class BrokerReport:
    """The broker, as in :class:`BrokerState`, without what only machines read."""

    url: str
    version: str
    uptime_s: float
    used_bytes: int
    max_bytes: int
    policy: str
    clients: int
    round_trip_s: float
    keys_bytes: dict[str, int]


@dataclass(frozen=True)
class Drop:
    """What did not arrive, of one node and for one reason.

    Attributes:
        kind: name of the counter, without ``_total``.
        store: which store, or empty.
        count: since the node was started.
        per_s: at present; None if that is not known yet.
    """

    service: str
    node: str
    kind: str
    reason: str
    store: str
    count: int
    per_s: float | None


@dataclass(frozen=True)
class Report:
    """The whole system."""

    at_ms: float
    namespace: str
    broker: BrokerReport
    problems: list[Problem]
    services: list[ServiceReport] = field(default_factory=list)
    stores: list[StoreReport] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


def report(before: Snapshot, after: Snapshot) -> Report:
    """Return how the system stands.

    Args:
        before: taken a second or more earlier, for the rates.
        after: the present one.
    """
    grown = rates(before, after)
    names = dict.fromkeys(peer.service for peer in after.peers)
    drops = [drop for peer in after.peers for drop in _drops(peer, grown)]
    return Report(
        *(after.at_ms, after.namespace, _broker(after), problems(after)),
        [_service(before, after, name, grown) for name in names],
        [_store(after, store) for store in after.stores],
        sorted(drops, key=lambda drop: (-(drop.per_s or 0.0), -drop.count)),
    )


def _broker(snapshot: Snapshot) -> BrokerReport:
    b = snapshot.broker
    sizes = (b.used_bytes, b.max_bytes, b.policy, b.clients, b.round_trip_s, b.keys_bytes)
    return BrokerReport(b.url, b.version, b.uptime_s, *sizes)


def _store(snapshot: Snapshot, store: StoreState) -> StoreReport:
    budget = budget_of(snapshot, store)
    sizes = (store.nbytes, budget, store.when_full, len(store.streams))
    return StoreReport(store.service, store.name, *sizes, list(store.consumers))


def _service(
    before: Snapshot, after: Snapshot, name: str, grown: dict[Series, float]
) -> ServiceReport:
    peers = [peer for peer in after.peers if peer.service == name]
    old = {peer.token: peer for peer in before.peers}
    nodes = [_node(after, peer, old.get(peer.token), grown) for peer in peers]
    server = next((node.rates for node in nodes if node.is_server), {})
    sampled, applied = server.get("store_sampled", 0.0), server.get("transitions_applied", 0.0)
    ratio = sampled / applied if sampled and applied else None
    return ServiceReport(name, after.queues.get(name, 0), ratio, nodes)


def _node(
    snapshot: Snapshot, peer: Peer, before: Peer | None, grown: dict[Series, float]
) -> NodeReport:
    state = "gone" if not peer.is_there else "late" if peer.is_late else "alive"
    progress_s = None if peer.idle_s is None else peer.idle_s + peer.beat_s
    return NodeReport(
        *(peer.does, peer.name, peer.is_server, peer.host, peer.pid, peer.version),
        *(state, round(peer.beat_s, 3), progress_s),
        _rates(peer, before, grown),
        _policy(snapshot, peer),
        _lag(snapshot, peer),
        list(_waits(snapshot, peer)),
        {s.labels.get("name", ""): s.value for s in peer.samples if s.name == "reported"},
    )


def _rates(peer: Peer, before: Peer | None, grown: dict[Series, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for (service, name, metric, _), rate in grown.items():
        if (service, name) == (peer.service, peer.name):
            counted = metric.removesuffix("_total")
            found[counted] = found.get(counted, 0.0) + rate
    if before is not None and peer.does == "trainer" and peer.told_ms > before.told_ms:
        was, now = before.value("network_version"), peer.value("network_version")
        if was is not None and now is not None:
            found["networks"] = max(now - was, 0.0) / (peer.told_ms - before.told_ms) * 1000
    return found


def _policy(snapshot: Snapshot, peer: Peer) -> Policy | None:
    version, server = peer.value("network_version"), snapshot.server(peer.service)
    newest = server.value("network_version") if server else None
    if not version:
        return None
    behind = max(int((newest or version) - version), 0)
    return Policy(int(version), peer.value("network_age_seconds"), behind)


def _lag(snapshot: Snapshot, peer: Peer) -> int | None:
    if (pending := peer.value("transitions_pending")) is not None:
        return int(pending)
    name = f"trainer:{peer.token}" if peer.does == "trainer" else peer.name
    consumers = [c for s in snapshot.stores if s.service == peer.service for c in s.consumers]
    behind = [consumer.behind for consumer in consumers if consumer.name == name]
    return sum(behind) if behind else None


def _waits(snapshot: Snapshot, peer: Peer) -> Iterator[str]:
    """Yield what a node says that it waits for, and what is seen only from outside."""
    if not peer.is_there:
        return
    if peer.does != "trainer":
        yield from peer.waits
        return
    clients = snapshot.clients(peer.service)
    actors = sum(client.does == "actor" and client.is_there for client in clients)
    for wait in peer.waits:
        yield f"{wait}; {actors or 'no'} actor{'s' * (actors != 1)}"
    if peer.stores and not actors and not peer.waits:
        yield "an actor: none is there"


def _drops(peer: Peer, grown: dict[Series, float]) -> Iterator[Drop]:
    for sample in peer.samples:
        reason = DROPS.get(sample.name)
        if reason is not None and sample.value:
            series = (peer.service, peer.name, sample.name, tuple(sorted(sample.labels.items())))
            kind, store = sample.name.removesuffix("_total"), sample.labels.get("store", "")
            where = (peer.service, peer.name, kind, reason, store)
            yield Drop(*where, int(sample.value), grown.get(series))
