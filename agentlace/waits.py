"""What nodes wait for, told to whoever looks at the system (:mod:`agentlace.telemetry`)."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from agentlace.forks import freed_by_fork
from agentlace.logs import Refrain, about

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITED_S = 1.0
"""A wait is told once it has lasted for so long."""
FORGOTTEN_S = 30.0
"""Who has not tried again for so long waits no more."""
TEXT_CHARS = 300
"""Of an event, or of what is waited for, so much travels."""


class Wait(NamedTuple):
    """What a node waits for.

    Attributes:
        text: for people, such as "212 of 1,000 transitions inserted".
        since_s: by the monotonic clock; None if that is not known.
    """

    text: str
    since_s: float | None = None


class Trying:
    """Something that is tried again and again, such as sending into a store that is full.

    Between two attempts nobody waits, and yet the program gets no further. So it is told as a
    wait until an attempt succeeds, or none was made for FORGOTTEN_S. For one thread at a
    time; only :meth:`waits` may be called from another meanwhile.
    """

    def __init__(self) -> None:
        self._wait: Wait | None = None
        self._tried_s = 0.0

    def failed(self, text: str) -> None:
        """Take note of what was missing, or still is."""
        now_s, before = time.monotonic(), self._wait
        goes_on = before is not None and now_s - self._tried_s < FORGOTTEN_S
        self._tried_s = now_s
        self._wait = Wait(text, before.since_s if before and goes_on else now_s)

    def succeeded(self) -> None:
        """Take note that nothing is missing any more."""
        self._wait = None

    def waits(self) -> Iterator[Wait]:
        """Yield what is missing."""
        wait = self._wait
        if wait is not None and time.monotonic() - self._tried_s < FORGOTTEN_S:
            yield wait


WaitSource = Callable[[], Iterable[Wait]]
"""Asked at heartbeats, on their thread."""


@dataclass
class _Waits:
    """What threads of this process wait for, by the role of the node that it concerns."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    descriptions: dict[int, tuple[str, float, Callable[[], str | None]]] = field(
        default_factory=dict
    )


_refrain = Refrain()
_WAITS = _Waits()
freed_by_fork(_WAITS.lock)


@contextlib.contextmanager
def waiting(role: str, describe: Callable[[], str | None]) -> Iterator[None]:
    """While this is open, all nodes of a role in this process say what they wait for.

    Args:
        role: as :class:`agentlace.telemetry.Telemetry` has it.
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


def told_waits(role: str, sources: Iterable[WaitSource]) -> list[str]:
    """Return what a node waits for since WAITED_S or more, the longest wait first.

    Args:
        role: of the node: what :func:`waiting` was told for it.
        sources: of what it waits for beside that.
    """
    found: list[Wait] = []
    for source in sources:
        found += _asked(partial(_all_of, source), [])
    with _WAITS.lock:
        mine = [w[1:] for w in _WAITS.descriptions.values() if w[0] == role]
    for since_s, describe in mine:
        if text := _asked(describe, None):
            found.append(Wait(text, since_s))
    now_s = time.monotonic()
    found = [w for w in found if w.since_s is None or now_s - w.since_s >= WAITED_S]
    found.sort(key=lambda wait: now_s if wait.since_s is None else wait.since_s)
    return [_lasting(wait, now_s) for wait in found]


def _all_of(source: WaitSource) -> list[Wait]:
    return list(source())


def _asked(ask: Callable[[], T], otherwise: T) -> T:
    try:
        return ask()
    except Exception as error:  # what cannot be told must not end a heartbeat
        text = "what a node waits for could not be told"
        _refrain.say(log.exception, error, text, extra=about(error=error))
        return otherwise


def _lasting(wait: Wait, now_s: float) -> str:
    lasts = "" if wait.since_s is None else f" (for {now_s - wait.since_s:.0f} s)"
    return wait.text[: TEXT_CHARS - len(lasts)] + lasts
