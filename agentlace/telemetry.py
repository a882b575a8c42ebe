"""What a node says of itself beside who it is: what it counts, measures and waits for.

Each node has one :class:`Telemetry`. The parts of a node register where their numbers are to be
read; they are read once per heartbeat, on its thread, so that counting costs the hot paths
nothing but the counters that they keep anyway. What was read travels in the node's presence key:
whoever looks (``agentlace status``, the dashboard, Prometheus) needs nothing but the broker.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from agentlace.forks import freed_by_fork
from agentlace.logs import Refrain, about
from agentlace.reports import Listener, ReportCallback
from agentlace.waits import TEXT_CHARS, WaitSource, told_waits

log = logging.getLogger(__name__)

SAMPLES_MAX = 256
"""So many samples of one node travel; the others are left out, which is logged once."""
EVENTS_MAX = 16
"""So many of a node's last events travel."""
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
    "transitions_sent_bytes_total": Metric(
        "counter", "Bytes of the chunks that the broker has confirmed."
    ),
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
    "networks_sent_bytes_total": Metric(
        "counter", "Bytes of networks sent to the broker; leaves that stay are not sent again."
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
    "observations_received_total": Metric("counter", "Observations that callbacks got."),
    "observations_sent_bytes_total": Metric("counter", "Bytes of observations sent to the broker."),
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


_running: weakref.WeakSet[Telemetry] = weakref.WeakSet()
_running_lock = freed_by_fork(threading.Lock())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # they are the parent's


def running() -> list[Telemetry]:
    """Return the telemetries of the nodes that run in this process."""
    with _running_lock:
        return sorted(_running, key=lambda node: (node.service, node.node))


class Telemetry:
    """What one node counts, measures and waits for. Thread-safe.

    Args:
        role: what the node is: ``trainer``, ``actor``, ``action``, ``inference``, ``recorder``;
            with ``client of`` before a service for its callers.
        service: the service that the node serves or calls, such as ``trainer:5555``.
        node: what it is called there.
    """

    def __init__(self, role: str, service: str = "", node: str = "") -> None:
        self.role = role
        self.service = service
        self.node = node
        self._lock = freed_by_fork(threading.Lock())
        self._sources: list[Source] = []
        self._wait_sources: list[WaitSource] = []
        self._reported: dict[str, float] = {}
        self._listeners: list[Listener] = []
        self._at_end: list[Callable[[], object]] = []
        self._events: deque[tuple[float, str, str]] = deque(maxlen=EVENTS_MAX)
        self._counted = 0.0
        self._moved_s = time.monotonic()
        self._has_warned = False
        self._refrain = Refrain()

    def begin(self) -> None:
        """Count this node among those that run in this process."""
        with _running_lock:
            _running.add(self)

    def end(self) -> None:
        """Take it from those that run, and let callbacks write what they hold back. Idempotent."""
        with _running_lock:
            _running.discard(self)
        with self._lock:
            work, self._at_end = self._at_end, []
            work += [listener.flush for listener in self._listeners]
        for call in work:
            try:
                call()
            except Exception as error:  # the node stops all the same
                text = "the numbers of %s did not end well"
                log.exception(text, self.node or self.role, extra=about(error=error))

    def at_end(self, call: Callable[[], object]) -> None:
        """Call this once, when the node stops."""
        with self._lock:
            self._at_end.append(call)

    def collect(self, source: Source) -> None:
        """Read samples from here at each heartbeat, on its thread; must not block."""
        with self._lock:
            self._sources.append(source)

    def explain(self, source: WaitSource) -> None:
        """Ask here what the node waits for, at each heartbeat, on its thread; must not block."""
        with self._lock:
            self._wait_sources.append(source)

    def note(self, kind: str, text: str) -> None:
        """Tell of an event, such as a reconnect; the last EVENTS_MAX travel."""
        with self._lock:
            self._events.append((time.time(), kind, text[:TEXT_CHARS]))

    def report(self, values: dict[str, float], step: int | None = None) -> None:
        """Show the program's own numbers, and hand them to the callbacks. Thread-safe.

        What a callback raises is logged, and not raised here. Numbers that are not finite go to
        the callbacks only.

        Args:
            values: by name, such as ``{"episode_return": 12.5}``; scalars of any library.
            step: of the program, if it counts any.

        Raises:
            TypeError: a value that is no single number; it names which.
        """
        numbers = {str(name): _number(name, value) for name, value in values.items()}
        with self._lock:
            self._reported.update(numbers)
            due = [(listener, listener.is_due()) for listener in self._listeners]
        own = _by_name(self._measured()) if any(is_due for _, is_due in due) else {}
        for listener, is_due in due:
            listener.call({**own, **numbers} if is_due else dict(numbers), step)

    def on_report(self, callback: ReportCallback, own_every_s: float | None = None) -> None:
        """Call back with all that is reported from now on, in the reporter's thread.

        Args:
            callback: such as :class:`agentlace.metrics.TensorBoard`. If it has a ``flush``, that
                is called when the node stops.
            own_every_s: seconds after which the node's own numbers go along with a report again,
                named like ``agentlace/store_size/env``; never if None.
        """
        with self._lock:
            self._listeners.append(Listener(callback, own_every_s))

    def samples(self) -> list[Sample]:
        """Return all numbers as they are now."""
        found = (
            self._measured()
        )  # first: of more than SAMPLES_MAX those are left out that come last
        with self._lock:
            return found + [Sample("reported", v, {"name": n}) for n, v in self._reported.items()]

    def _measured(self) -> list[Sample]:
        """Return the node's own numbers."""
        found: list[Sample] = []
        with self._lock:
            sources = list(self._sources)
        for source in sources:
            try:
                found += source()
            except Exception as error:  # a number that cannot be told must not end a heartbeat
                text = "numbers of a node could not be read"
                self._refrain.say(
                    log.exception, (text, type(error)), text, extra=about(error=error)
                )
        return found

    def waits(self) -> list[str]:
        """Return what this node waits for, the longest wait first.

        What :func:`agentlace.waits.waiting` was told for its role is told by all nodes of that
        role in this process: a rate limiter, say, does not know whose store it guards.
        """
        with self._lock:
            sources = list(self._wait_sources)
        return told_waits(self.role, sources)

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


def _by_name(samples: list[Sample]) -> dict[str, float]:
    """Return samples by name and labels, as programs show them that know no labels."""
    return {"/".join(["agentlace", s.name, *s.labels.values()]): s.value for s in samples}


def _number(name: object, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"reported {name!r} is a {kind}, and no single number") from None
