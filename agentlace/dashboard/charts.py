"""Which numbers of a snapshot are plotted, and in which chart."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from agentlace.operating import Peer, Snapshot
from agentlace.operating.snapshot import Series

Place = tuple[str, str]
"""A series: its chart, and its label there."""

SINGLE_MAX = 6
"""Where more nodes do the same, the smallest, median and largest of their numbers are plotted."""
REPORTED = "reported:"
"""A program's own numbers have a chart each: this and their name."""
RATES = {
    "transitions_sent_total": ("transitions", "sent"),
    "transitions_applied_total": ("transitions", "taken by"),
    "requests_answered_total": ("requests", ""),
    "observations_published_total": ("observations", ""),
}


def points(snapshot: Snapshot, rates: Mapping[Series, float]) -> dict[Place, float]:
    """Return a value per series.

    Args:
        snapshot: the system now.
        rates: how fast its counters grow.
    """
    found: dict[Place, float] = defaultdict(float)
    does = {(peer.service, peer.name): peer.does for peer in snapshot.peers}
    for (service, name, metric, labels), rate in rates.items():
        if metric in RATES and (rate or not _is_minor(service, labels)):
            chart, verb = RATES[metric]
            who = does.get((service, name), "")
            found[chart, _label(verb, who, service, dict(labels).get("store"))] += rate
    for place, value in [*_lags(snapshot), *_ages(snapshot), *_reported(snapshot)]:
        found[place] = value
    return dict(found)


def _is_minor(service: str, labels: tuple[tuple[str, str], ...]) -> bool:
    """Whether it is a trainer's requests, which most programs never make."""
    return service.startswith("trainer:") and "store" not in dict(labels)


def _label(verb: str, who: str, service: str, store: str | None) -> str:
    if store is None:
        return service
    return f"{store} {verb} {who}" if verb == "taken by" else f"{store} {verb}"


def _lags(snapshot: Snapshot) -> Iterator[tuple[Place, float]]:
    for store in snapshot.stores:
        for consumer in store.consumers:
            yield ("lag", f"{store.name} → {consumer.name.split(':')[0]}"), consumer.behind
    waiting = [peer.value("transitions_pending") for peer in snapshot.peers]
    told = [value for value in waiting if value is not None]
    if told:
        yield ("lag", "waiting at actors"), sum(told)


def _ages(snapshot: Snapshot) -> Iterator[tuple[Place, float]]:
    told = [(peer, peer.value("network_age_seconds")) for peer in snapshot.peers]
    ages = [(peer, age) for peer, age in told if age is not None]
    yield from _spread("policy_age", ages, _crowds(snapshot))


def _reported(snapshot: Snapshot) -> Iterator[tuple[Place, float]]:
    found: dict[str, list[tuple[Peer, float]]] = defaultdict(list)
    for peer, name, value in reports(snapshot.peers):
        found[name].append((peer, value))
    for name, told in found.items():
        yield from _spread(f"{REPORTED}{name}", told, _crowds(snapshot))


def _crowds(snapshot: Snapshot) -> set[str]:
    """Return what more than SINGLE_MAX nodes do."""
    counted = Counter(peer.does for peer in snapshot.peers if peer.is_there)
    return {does for does, count in counted.items() if count > SINGLE_MAX}


def reports(peers: Iterable[Peer]) -> Iterator[tuple[Peer, str, float]]:
    """Yield what programs report: by which node, its name, its value."""
    for peer in peers:
        for sample in peer.samples:
            if sample.name == "reported" and peer.is_there:
                yield peer, sample.labels.get("name", ""), sample.value


def _spread(
    chart: str, told: list[tuple[Peer, float]], crowds: set[str]
) -> Iterator[tuple[Place, float]]:
    """Yield the value of each node; of a crowd only three."""
    if not any(peer.does in crowds for peer, _ in told):
        yield from (((chart, peer.name), value) for peer, value in told)
        return
    values = [value for _, value in told]
    yield (chart, "largest"), max(values)
    yield (chart, "median"), statistics.median(values)
    yield (chart, "smallest"), min(values)
