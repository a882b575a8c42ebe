"""Reads the broker once a second and keeps what the page shows."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from agentlace.config import BrokerURL
from agentlace.dashboard import graph, nodes
from agentlace.dashboard.charts import points
from agentlace.dashboard.events import Differ, EventLog
from agentlace.dashboard.history import History, rounded
from agentlace.errors import AgentlaceError
from agentlace.operating import Snapshot, rates, take
from agentlace.transport.connection import Broker

log = logging.getLogger(__name__)

EVERY_S = 1.0
"""How often the broker is read. Half of the time is left to others, however long it takes."""
WINDOW = 5
"""Rates are of so many seconds: nodes tell their numbers once a second, not evenly."""
JOIN_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0

Callback = Callable[[], object]


class Feed:
    """A thread that takes snapshots, and what was made of them. Thread-safe.

    While the broker is away the last state stays, marked as such, and the thread goes on trying.

    Args:
        url: the broker, as a user that may read everything.
        every_s: seconds from one snapshot to the next.
    """

    def __init__(self, url: BrokerURL, every_s: float = EVERY_S) -> None:
        self.url = url
        self.history = History()
        self.events = EventLog()
        self._every_s = every_s
        self._channel = Broker(url).channel(CONNECT_TIMEOUT_S)
        self._differ = Differ(self.events)
        self._recent: deque[Snapshot] = deque(maxlen=WINDOW + 1)
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callback] = {}
        self._numbers = itertools.count()
        self._tick: tuple[int, dict[str, Any]] = (0, {"away": None, "namespace": url.namespace})
        self._away_since: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dashboard feed", daemon=True)

    def start(self) -> None:
        """Begin to read; returns at once, also if the broker is away."""
        self._thread.start()

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot, None before the first; None also while the broker is away."""
        with self._lock:
            return self._recent[-1] if self._recent and self._away_since is None else None

    def state(self, events_after: int = 0) -> dict[str, Any]:
        """Return what the page shows now, with the events that came after one."""
        with self._lock:
            number, told = self._tick
        return {**told, "tick": number, "events": self.events.after(events_after)}

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more will come."""
        return self._stop.is_set()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call back, in the feed's thread, whenever there is something new; returns the end."""
        with self._lock:
            number = next(self._numbers)
            self._callbacks[number] = callback

        def unsubscribe() -> None:
            with self._lock:
                self._callbacks.pop(number, None)

        return unsubscribe

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._take()
            except AgentlaceError as error:
                if self._stop.is_set():
                    return
                self._note_away(error)
            except Exception:
                log.exception("the dashboard could not show a snapshot")
            took = time.monotonic() - began
            self._stop.wait(max(self._every_s - took, min(took, 10 * self._every_s), 0.0))

    def _take(self) -> None:
        began = time.monotonic()
        snapshot = take(self._channel, self.url.namespace)
        took_s = time.monotonic() - began
        if self._away_since is not None:
            self.events.add(time.time(), "broker", "broker", "it is back")
            self._recent.clear()
        with self._lock:
            self._recent.append(snapshot)
            self._away_since = None
            first, last = self._recent[0], snapshot
        self._differ.look(snapshot)
        growing = rates(first, last)
        values = points(snapshot, growing)
        self.history.add(snapshot.at_ms / 1000, values)
        told = described(snapshot, growing, networks_per_s(first, last))
        told["points"] = _by_chart(values)
        told["took_ms"] = round(1000 * took_s, 1)
        self._publish(told)

    def _note_away(self, error: AgentlaceError) -> None:
        with self._lock:
            is_news = self._away_since is None
            self._away_since = self._away_since or time.time()
            since, (_, told) = self._away_since, self._tick
        if is_news:
            self.events.add(since, "broker", "broker", str(error))
            log.warning("the dashboard waits for the broker: %s", error)
        self._publish({**told, "points": {}, "away": {"since_s": since, "text": str(error)}})

    def _publish(self, told: dict[str, Any]) -> None:
        with self._lock:
            self._tick = (self._tick[0] + 1, told)
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()

    def stop(self) -> None:
        """End; whoever is subscribed is called once more. Idempotent."""
        self._stop.set()
        self._channel.close()
        with self._lock:
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)


def described(
    snapshot: Snapshot,
    growing: Mapping[Any, float],
    networks: Mapping[tuple[str, str], float],
) -> dict[str, Any]:
    """Return what the page shows of a snapshot: plain lists and dicts."""
    broker, of_nodes = snapshot.broker, nodes.by_node(growing)
    paused = {peer.service for peer in snapshot.peers if peer.is_paused and peer.is_there}
    trainers = [p.service for p in snapshot.peers if p.does == "trainer" and p.is_there]
    cameras = [p.service for p in snapshot.peers if p.is_server and p.is_there and _shows(p)]
    return {
        "away": None,
        "at_s": round(snapshot.at_ms / 1000, 2),
        "namespace": snapshot.namespace,
        "broker": {
            **{"url": broker.url, "version": broker.version, "uptime_s": broker.uptime_s},
            **{"used_bytes": broker.used_bytes, "max_bytes": broker.max_bytes},
            **{"clients": broker.clients, "round_trip_s": rounded(broker.round_trip_s)},
        },
        "nodes": [
            nodes.node(p, of_nodes, p.does == "actor" and p.service in paused)
            for p in snapshot.peers
        ],
        "lanes": graph.lanes(snapshot, growing, networks),
        "problems": nodes.problems(snapshot),
        "trainers": [{"service": name, "is_paused": name in paused} for name in trainers],
        "cameras": cameras,
    }


def _shows(peer: Any) -> bool:
    return peer.service.startswith("action:") and peer.config.get("broadcast_port") is not None


def networks_per_s(before: Snapshot, after: Snapshot) -> dict[tuple[str, str], float]:
    """Return how many networks each node published or received per second, by service and name."""
    seconds = (after.at_ms - before.at_ms) / 1000
    old = {peer.token: peer.value("network_version") for peer in before.peers}
    found = {}
    for peer in after.peers:
        version = peer.value("network_version")
        if seconds > 0 and version is not None and peer.token in old:
            grown = version - (old[peer.token] or 0.0)
            found[peer.service, peer.name] = max(grown, 0.0) / seconds
    return found


def _by_chart(values: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for (chart, label), value in values.items():
        found.setdefault(chart, {})[label] = rounded(value)
    return found


def as_json(told: Any) -> bytes:
    """Return it as compact JSON; what is no finite number is null."""
    try:
        text = json.dumps(told, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(told), separators=(",", ":"))
    return text.encode()


def _finite(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: _finite(value) for key, value in told.items()}
    if isinstance(told, list):
        return [_finite(value) for value in told]
    return rounded(told) if isinstance(told, float) else told
