"""Calls that a server has taken and not begun: whose turn it is, and who must make room."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from agentlace.inference.batching import Structure
from agentlace.inference.interface import Interface
from agentlace.transport.request_frames import Request

BUSY, SUPERSEDED = "Busy", "Superseded"


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A call that waits.

    Attributes:
        request: as it was read.
        interface: what it calls.
        kind: calls of one kind may be answered together.
    """

    request: Request
    interface: Interface
    kind: tuple[str, Structure]


class Refusal(NamedTuple):
    """A call that will not be executed, and why."""

    waiting: Waiting
    kind: str
    text: str


class CallQueue:
    """Calls by client. Not thread-safe: its owner has a lock.

    Clients take turns: what is next is the oldest call of the client whose last turn is longest
    ago. Calls of the same kind join it, likewise one of each client after the other.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, deque[Waiting]] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[tuple[str, Structure]] = Counter()
        self.size = 0

    def __len__(self) -> int:
        """Return how many calls wait."""
        return self.size

    def count(self, title: str) -> int:
        """Return how many calls of an interface wait."""
        return self._counts[title]

    def alike(self, kind: tuple[str, Structure]) -> int:
        """Return how many calls of a kind wait."""
        return self._kinds[kind]

    def callers(self, title: str) -> set[bytes]:
        """Return whose calls of an interface wait: by line, not by client."""
        return {w.request.caller for w in self if w.interface.title == title}

    def __iter__(self) -> Iterator[Waiting]:
        """Yield all calls, client by client."""
        for calls in self._clients.values():
            yield from calls

    def add(self, waiting: Waiting) -> list[Refusal]:
        """Let a call wait; returns those that must not wait any more for it, or itself."""
        refused = self._superseded(waiting) if waiting.interface.newest_only else []
        self._clients.setdefault(waiting.request.family, deque()).append(waiting)
        self._count(waiting, 1)
        return refused + self._excess(waiting)

    def _superseded(self, newer: Waiting) -> list[Refusal]:
        """Take out the older calls of the same client to the same interface."""
        title, calls = newer.interface.title, self._clients.get(newer.request.family, ())
        older = [w for w in calls if w.interface.title == title]
        text = f"a newer call of {newer.interface.name!r} by the same client took its place"
        return [Refusal(self._remove(w), SUPERSEDED, text) for w in older]

    def _excess(self, newest: Waiting) -> list[Refusal]:
        """Take out the newest call of whoever has most waiting, if more wait than may.

        That is the newcomer, unless another client has more.
        """
        title, limit = newest.interface.title, newest.interface.max_queue
        if limit is None or self._counts[title] <= limit:
            return []
        own = self._clients[newest.request.family]
        longest = max([own, *self._clients.values()], key=lambda calls: _count_of(calls, title))
        excess = next(w for w in reversed(longest) if w.interface.title == title)
        text = f"{limit} calls of {newest.interface.name!r} wait already, as many as may"
        return [Refusal(self._remove(excess), BUSY, text)]

    def _remove(self, waiting: Waiting) -> Waiting:
        calls = self._clients[waiting.request.family]
        calls.remove(waiting)
        if not calls:
            del self._clients[waiting.request.family]
        self._count(waiting, -1)
        return waiting

    def _count(self, waiting: Waiting, change: int) -> None:
        kind = waiting.kind
        self._counts[waiting.interface.title] += change
        self._kinds[kind] += change
        if not self._kinds[kind]:  # there is no end of structures
            del self._kinds[kind]
        self.size += change

    def expired(self, is_expired: Callable[[Request], bool]) -> list[Waiting]:
        """Take out the calls whose time is over."""
        return [self._remove(w) for w in list(self) if is_expired(w.request)]

    def first(self) -> Waiting | None:
        """Return the call whose turn it is; None if none waits."""
        return next(iter(self), None)

    def take(self) -> list[Waiting]:
        """Take out the call whose turn it is, and those that are answered together with it."""
        first = self.first()
        if first is None:
            return []
        limit = first.interface.max_batch if first.interface.batch else 1
        taken: list[Waiting] = []
        while len(taken) < limit:
            turn = self._turn(first, limit - len(taken))
            if not turn:
                break
            taken += turn
        return taken

    def _turn(self, first: Waiting, limit: int) -> list[Waiting]:
        """Take out at most one call of each client that goes together with the first one."""
        found: list[Waiting] = []
        for calls in self._clients.values():
            match = next((w for w in calls if w.kind == first.kind), None)
            if match is not None:
                found.append(match)
            if len(found) == limit:
                break
        for waiting in found:
            self._remove(waiting)
            if waiting.request.family in self._clients:
                self._clients.move_to_end(waiting.request.family)
        return found

    def clear(self) -> list[Waiting]:
        """Take out all calls."""
        return [self._remove(w) for w in list(self)]


def _count_of(calls: deque[Waiting], title: str) -> int:
    return sum(w.interface.title == title for w in calls)
