"""The log of events: what changed between two snapshots, in words."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from agentlace.dashboard.nodes import DROPS, node_id
from agentlace.operating import Peer, Snapshot

KEPT = 500
"""So many events are kept, the newest."""
QUIET_S = 10.0
"""What goes on and on is told so often at most, with how much there was since."""
NETWORKS_QUIET_S = 60.0
"""The same of networks, which come all the time when all is well."""
MANY = 4
"""So many nodes to which the same happens at once are one event."""
TEXT_CHARS = 300
HEARD_MAX = 2000
"""Of so many nodes it is known which of their events were logged, also when they are gone."""


@dataclass(frozen=True)
class Logged:
    """An event.

    Attributes:
        id: counted up from 1.
        at_s: seconds since the epoch.
        kind: ``join``, ``leave``, ``loss``, ``late``, ``back``, ``restart``, ``drop``, ``policy``,
            ``pause``, ``resume``, ``broker``, or what a node calls it, such as ``reconnect``.
        who: the node.
        text: for people.
    """

    id: int
    at_s: float
    kind: str
    who: str
    text: str


class EventLog:
    """The newest events. Thread-safe."""

    def __init__(self, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._events: deque[Logged] = deque(maxlen=kept)
        self._ids = itertools.count(1)

    def add(self, at_s: float, kind: str, who: str, text: str) -> None:
        """Add an event."""
        with self._lock:
            text = text[:TEXT_CHARS]
            self._events.append(Logged(next(self._ids), round(at_s, 2), kind, who, text))

    def after(self, number: int) -> list[dict[str, Any]]:
        """Return the events that came after one, the oldest first."""
        with self._lock:
            return [asdict(event) for event in self._events if event.id > number]


class Differ:
    """Finds the events between snapshots that come one after the other.

    Args:
        events: gets them.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._before: Snapshot | None = None
        self._told: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._heard: dict[str, float] = {}

    def look(self, after: Snapshot) -> None:
        """Log what has changed since the last snapshot; of the first one nothing."""
        before, self._before = self._before, after
        for peer in after.peers:
            self._own_events(peer, is_news=before is not None)
        if before is None:
            return
        now_s = after.at_ms / 1000
        if after.broker.uptime_s < before.broker.uptime_s:
            self._events.add(now_s, "broker", "broker", "it was started anew")
        old = {node_id(peer): peer for peer in before.peers}
        new = {node_id(peer): peer for peer in after.peers}
        found = [(p, *change) for name, p in new.items() for change in _changes(old.get(name), p)]
        gone = [name for name in old if name not in new]
        self._tell(now_s, [*found, *((old[name], *_goodbye(old[name])) for name in gone)])
        for name, peer in new.items():
            if name in old and old[name].token == peer.token:
                self._growth(now_s, old[name], peer)
        for name in gone:
            self._forget(name)

    def _tell(self, now_s: float, changes: list[tuple[Peer, str, str]]) -> None:
        """Log changes; one event for many of a kind, such as 64 actors that join at once."""
        alike: dict[tuple[str, str], list[tuple[Peer, str]]] = {}
        for peer, kind, text in changes:
            alike.setdefault((kind, peer.does), []).append((peer, text))
        for (kind, does), group in alike.items():
            if len(group) < MANY:
                for peer, text in group:
                    self._events.add(now_s, kind, peer.name, text)
                continue
            names = ", ".join(peer.name for peer, _ in group)
            self._events.add(now_s, kind, f"{len(group)} of {does}", names)

    def _own_events(self, peer: Peer, is_news: bool) -> None:
        """Log what a node tells of itself, each event once; none from before this log began."""
        last_ms = self._heard.pop(peer.token, 0.0)
        for event in peer.events:
            if is_news and event.at_ms > last_ms:
                self._events.add(event.at_ms / 1000, event.kind, peer.name, event.text)
        self._heard[peer.token] = max([last_ms, *(event.at_ms for event in peer.events)])
        while len(self._heard) > HEARD_MAX:
            del self._heard[next(iter(self._heard))]

    def _growth(self, now_s: float, old: Peer, new: Peer) -> None:
        for metric, what in DROPS.items():
            grown = (new.value(metric) or 0.0) - (old.value(metric) or 0.0)
            count = self._due(now_s, f"{node_id(new)} {metric}", grown)
            if count:
                self._events.add(now_s, "drop", new.name, f"{what}: {count:,.0f}")
        if new.is_server and (version := new.value("network_version")):
            grown = version - (old.value("network_version") or 0.0)
            count = self._due(now_s, f"{node_id(new)} network", grown, NETWORKS_QUIET_S)
            if count:
                others = f", the last of {count:.0f}" if count > 1 else ""
                self._events.add(now_s, "policy", new.name, f"network {version:.0f}{others}")

    def _due(self, now_s: float, key: str, grown: float, quiet_s: float = QUIET_S) -> float:
        """Return how much there was since it was last told, 0 if it is too early to tell."""
        self._since[key] = self._since.get(key, 0.0) + max(grown, 0.0)
        if not self._since[key] or now_s - self._told.get(key, 0.0) < quiet_s:
            return 0.0
        self._told[key] = now_s
        return self._since.pop(key)

    def _forget(self, name: str) -> None:
        for known in (self._told, self._since):
            for key in [key for key in known if key.startswith(f"{name} ")]:
                del known[key]


def _changes(old: Peer | None, new: Peer) -> Iterator[tuple[str, str]]:
    """Yield what became of a node that is (or was) there: kind and text."""
    where = f"{new.does} at {new.host}, pid {new.pid}"
    if old is None or (new.is_there and not old.is_there and old.token != new.token):
        if new.is_there:
            yield "join", where
        return
    if new.is_there and old.token != new.token:
        yield "restart", f"{where}; before: {old.host}, pid {old.pid}"
    elif old.is_there and not new.is_there:
        yield _goodbye(old)
    elif new.is_there and not old.is_there:
        yield "back", where
    elif new.is_late and not old.is_late:
        yield "late", f"no heartbeat for {new.beat_s:.0f} s"
    elif old.is_late and not new.is_late:
        yield "back", "its heart beats again"
    if new.is_paused != old.is_paused:
        yield ("pause", "pauses its actors") if new.is_paused else ("resume", "goes on")


def _goodbye(old: Peer) -> tuple[str, str]:
    where = f"{old.does} at {old.host}, pid {old.pid}"
    if old.is_late:
        return "loss", f"{where}: lost without a goodbye"
    return "leave", where
