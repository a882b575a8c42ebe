"""What a node says of itself beside who it is: what it counts, measures and waits for.

Each node has one :class:`Telemetry`. The parts of a node register where their numbers are to be
read; they are read once per heartbeat, on its thread, so that counting costs the hot paths
nothing but the counters that they keep anyway. What was read travels in the node's presence key:
whoever looks (``agentlace status``, the dashboard, Prometheus) needs nothing but the broker.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

SAMPLES_MAX = 256
"""So many samples of one node travel; the others are left out, which is logged once."""
EVENTS_MAX = 16
"""So many of a node's last events travel."""
TEXT_CHARS = 300
"""Of an event, or of what is waited for, so much travels."""
PREFIX = "agentlace_"
"""Of every name where names of several programs meet."""


@dataclass(frozen=True)
class Metric:
    """What a name stands for.

    Attributes:
        kind: ``counter``, which only grows while the node lives, or ``gauge``.
        help: a sentence for people.
    """

    kind: str
    help: str


METRICS: dict[str, Metric] = {
    "transitions_sent_total": Metric("counter", "Transitions that the broker has confirmed."),
    "transitions_lost_total": Metric(
        "counter", "Transitions overwritten in the actor's store before they could be sent."
    ),
    "transitions_dropped_total": Metric(
        "counter", "Transitions dropped unread to make room at the broker."
    ),
    "transitions_pending": Metric("gauge", "Transitions taken and not confirmed by the broker."),
    "transitions_applied_total": Metric("counter", "Transitions that the trainer's store took."),
    "transitions_rejected_total": Metric("counter", "Transitions that the store refused."),
    "transitions_missing_total": Metric("counter", "Transitions found missing in a stream."),
    "episodes_recorded": Metric("gauge", "Episodes in the recorder's dataset."),
    "store_size": Metric("gauge", "Transitions in the store."),
    "store_sampled_total": Metric("counter", "Transitions sampled from the store."),
    "network_version": Metric(
        "gauge", "Number of the newest network, published or received (policy version)."
    ),
    "network_age_seconds": Metric(
        "gauge", "Seconds since the network that this actor acts with was published."
    ),
    "networks_superseded_total": Metric(
        "counter", "Networks that were never sent because a newer one came first."
    ),
    "requests_answered_total": Metric("counter", "Requests answered."),
    "requests_expired_total": Metric("counter", "Requests dropped after their deadline."),
    "requests_unreadable_total": Metric("counter", "Requests that could not be read."),
    "requests_waiting": Metric("gauge", "Calls that the server has taken and not begun."),
    "requests_refused_total": Metric("counter", "Calls refused since too many waited."),
    "requests_superseded_total": Metric(
        "counter", "Calls whose place a newer one of their client took."
    ),
    "requests_batched_total": Metric("counter", "Calls answered in batches."),
    "requests_taken_over_total": Metric(
        "counter", "Calls that this server gave to others when their own was lost."
    ),
    "batches_total": Metric("counter", "Batches answered."),
    "requests_made_total": Metric("counter", "Requests made."),
    "requests_failed_total": Metric("counter", "Requests that got no answer, or an error."),
    "observations_published_total": Metric("counter", "Observations broadcast."),
    "observations_missed_total": Metric(
        "counter", "Observations published that a slow watcher did not get."
    ),
    "observations_skipped_total": Metric(
        "counter", "Ticks of a fixed rate that were over before an observation was captured."
    ),
    "actions_refused_total": Metric("counter", "Actions refused: another client has control."),
    "watchdog_calls_total": Metric("counter", "Times that no action came for too long."),
    "images_total": Metric("counter", "Images that were encoded, decoded or resized."),
    "image_seconds_total": Metric("counter", "Seconds that this took."),
    "reconnects_total": Metric("counter", "Times that the node was connected to the broker again."),
    "reported": Metric("gauge", "What the program reports, by name, such as losses."),
}
"""Every name, without its prefix; unit and kind are in the name as Prometheus has it."""


class Sample(NamedTuple):
    """A number at one moment, and which of several it is, such as of which store."""

    name: str
    value: float
    labels: dict[str, str] = {}  # noqa: RUF012 - a default that nobody writes to


Source = Callable[[], Iterable[Sample]]
ReportCallback = Callable[[dict[str, float], "int | None"], object]
"""Called with what the program reports, by name, and its step."""


@dataclass
class _Waits:
    """What threads of this process wait for, by the role of the node that it concerns."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    descriptions: dict[int, tuple[str, float, Callable[[], str | None]]] = field(
        default_factory=dict
    )


_WAITS = _Waits()


@contextlib.contextmanager
def waiting(role: str, describe: Callable[[], str | None]) -> Iterator[None]:
    """While this is open, all nodes of a role in this process say what they wait for.

    Args:
        role: as :class:`Telemetry` has it.
        describe: returns what is missing now, None if nothing is; called from heartbeats.
    """
    key = id(describe)
    with _WAITS.lock:
        _WAITS.descriptions[key] = (role, time.monotonic(), describe)
    try:
        yield
    finally:
        with _WAITS.lock:
            _WAITS.descriptions.pop(key, None)


class Telemetry:
    """What one node counts, measures and waits for. Thread-safe.

    Args:
        role: what the node is: ``trainer``, ``actor``, ``action``, ``inference``, ``recorder``;
            with ``client of`` before a service for its callers.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self._lock = threading.Lock()
        self._sources: list[Source] = []
        self._reported: dict[str, float] = {}
        self._callbacks: list[ReportCallback] = []
        self._events: deque[tuple[float, str, str]] = deque(maxlen=EVENTS_MAX)
        self._counted = 0.0
        self._moved_s = time.monotonic()
        self._has_warned = False

    def collect(self, source: Source) -> None:
        """Read samples from here at each heartbeat, on its thread; must not block."""
        with self._lock:
            self._sources.append(source)

    def note(self, kind: str, text: str) -> None:
        """Tell of an event, such as a reconnect; the last EVENTS_MAX travel."""
        with self._lock:
            self._events.append((time.time(), kind, text[:TEXT_CHARS]))

    def report(self, values: dict[str, float], step: int | None = None) -> None:
        """Show the program's own numbers, and hand them to the callbacks.

        Args:
            values: by name, such as ``{"episode_return": 12.5}``; scalars of any library.
            step: of the program, if it counts any.

        Raises:
            TypeError: a value that is no single number; it names which.
        """
        numbers = {str(name): _number(name, value) for name, value in values.items()}
        with self._lock:
            self._reported.update(numbers)
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback(numbers, step)

    def on_report(self, callback: ReportCallback) -> None:
        """Call back with all that is reported from now on, in the reporter's thread."""
        with self._lock:
            self._callbacks.append(callback)

    def samples(self) -> list[Sample]:
        """Return all numbers as they are now."""
        with self._lock:
            sources = list(self._sources)
            found = [Sample("reported", v, {"name": n}) for n, v in self._reported.items()]
        for source in sources:
            try:
                found += source()
            except Exception:  # a number that cannot be told must not end a heartbeat
                log.exception("numbers of a node could not be read")
        return found

    def waits(self) -> list[str]:
        """Return what this process waits for on behalf of this node, the longest wait first."""
        with _WAITS.lock:
            mine = [w for w in _WAITS.descriptions.values() if w[0] == self.role]
        found = []
        for _, since_s, describe in sorted(mine, key=lambda wait: wait[1]):
            try:
                text = describe()
            except Exception:
                log.exception("what a node waits for could not be told")
                continue
            if text:
                found.append(f"{text} (for {time.monotonic() - since_s:.0f} s)"[:TEXT_CHARS])
        return found

    def told(self) -> dict[str, Any]:
        """Return what goes out with a heartbeat: plain lists and dicts.

        ``idle_s`` is since how long nothing was counted: a node that lives and does nothing.
        """
        samples = self.samples()
        self._bound(samples)
        counted = sum(s.value for s in samples if METRICS.get(s.name, _GAUGE).kind == "counter")
        with self._lock:
            if counted != self._counted:
                self._counted, self._moved_s = counted, time.monotonic()
            events = [[round(1000 * at_s), kind, text] for at_s, kind, text in self._events]
            idle_s = time.monotonic() - self._moved_s
        return {
            "told": 1,
            "does": self.role,
            "samples": [[s.name, s.labels, s.value] for s in samples if math.isfinite(s.value)],
            "waits": self.waits(),
            "events": events,
            "idle_s": round(idle_s, 1),
        }

    def _bound(self, samples: list[Sample]) -> None:
        if len(samples) > SAMPLES_MAX:
            if not self._has_warned:
                log.warning("only %d of %d numbers are told", SAMPLES_MAX, len(samples))
            self._has_warned = True
            del samples[SAMPLES_MAX:]


_GAUGE = Metric("gauge", "")


def _number(name: object, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"reported {name!r} is a {kind}, and no single number") from None
