"""The budget of one actor's stream: what of it is used, and how room is made in it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agentlace.errors import AgentlaceError, BrokerAuthFailed, StoreFull
from agentlace.logs import about
from agentlace.transport.connection import Channel, Refused
from agentlace.transport.keys import StoreKeys
from agentlace.transport.lag import described
from agentlace.transport.streams import START, Retention, StreamId, applied, cursors, trim_read
from agentlace.waits import Trying
from agentlace.wording import size

log = logging.getLogger(__name__)

ROOM_POLL_S = 0.02
"""How often a full stream is looked at while waiting for room."""
ENTRY_OVERHEAD_BYTES = 128
SPARE_PARTS = 64
"""One part of so many of the share is freed beyond what is needed: each time it is looked what
consumers have read, and trimmed, takes two round trips, which would come with every chunk."""
SPARE_PARTS = 64
"""One part of so many of the share is freed beyond what is needed: each time it is looked what
consumers have read, and trimmed, takes two round trips, which would come with every chunk."""
TELL_EVERY_S = 1.0
"""How often it is asked, while waiting for room, who takes it."""
WARN_EVERY_S = 10.0
"""How often it is logged that transitions are dropped."""


class _Kept(NamedTuple):
    """An entry of the stream, as far as trimming needs to know it."""

    id: StreamId
    rows: int
    nbytes: int


class Room:
    """Keeps one actor's stream within its share of the store's retention.

    Args:
        channel: for the stream's commands.
        keys: which store.
        actor: the actor's identity.
        retention: returns the store's present retention.
        stores: returns how many stores the trainer has.

    Attributes:
        limit_bytes: what the broker's memory allows the streams of all stores; 0 for anything.
        dropped: transitions that went unread.
        kept_bytes: of all entries so far.
        waiting: for room.
    """

    def __init__(
        self,
        channel: Channel,
        keys: StoreKeys,
        actor: str,
        retention: Callable[[], Retention],
        stores: Callable[[], int],
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._actor = actor
        self._stream = keys.stream(actor)
        self._retention = retention
        self._stores = stores
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._next_warning = 0.0
        self._next_tell = 0.0
        self.waiting = Trying()
        self.kept_bytes = 0
        self.share_bytes = 0
        self.limit_bytes = 0
        self.dropped = 0

    def share_with(self, actors: int) -> None:
        """Take note that the retention is shared by so many actors."""
        max_bytes = self._retention().max_bytes
        if self.limit_bytes:
            max_bytes = min(max_bytes, self.limit_bytes // max(1, self._stores()))
        self.share_bytes = max_bytes // max(1, actors)

    def keep(self, entry: StreamId, rows: int, nbytes: int) -> None:
        """Take note of an entry that is in the stream now."""
        self._kept.append(_Kept(entry, rows, nbytes + ENTRY_OVERHEAD_BYTES))
        self._kept_bytes += nbytes + ENTRY_OVERHEAD_BYTES
        self.kept_bytes += nbytes
        self.waiting.succeeded()

    def adopt(self, newest: StreamId) -> None:
        """Take note of what this actor's predecessor has left in the stream, if one may ask."""
        try:
            nbytes = int(self._channel.call("MEMORY", "USAGE", self._stream) or 0)
        except (BrokerAuthFailed, Refused):
            nbytes = 0
        self.keep(newest, 0, nbytes)

    def forget_after(self, newest: StreamId) -> None:
        """Take note that the broker has lost all entries after this one."""
        self._kept = deque(entry for entry in self._kept if entry.id <= newest)
        self._kept_bytes = sum(entry.nbytes for entry in self._kept)

    def make(self, nbytes: int, deadline: float) -> None:
        """Trim what every consumer has read, if the budget needs the room; else wait or drop.

        Raises:
            StoreFull: there was no room before the deadline.
        """
        goal = max(self.share_bytes - nbytes - ENTRY_OVERHEAD_BYTES, 0)
        while self._kept_bytes > goal and self._kept:
            positions = cursors(self._channel, self._keys, self._actor)
            spare = self.share_bytes // SPARE_PARTS
            self._trim(min(positions.values(), default=START), max(goal - spare, 0))
            if self._kept_bytes <= goal or not self._kept:
                return
            if self._retention().when_full == "drop_oldest":
                self._drop(goal, positions)
                return
            self._tell(positions)
            if time.monotonic() >= deadline:
                raise StoreFull(self._full_message(positions))
            threading.Event().wait(ROOM_POLL_S)

    def relieve(self, nbytes: int, deadline: float) -> bool:
        """Make room in a broker that is full; False if that failed until the deadline."""
        positions = cursors(self._channel, self._keys, self._actor)
        if self._trim(min(positions.values(), default=START), 0) + trim_read(
            self._channel, self._keys
        ):
            return True
        if self._retention().when_full == "drop_oldest" and self._kept:
            self._drop(max(self._kept_bytes - nbytes - ENTRY_OVERHEAD_BYTES, 0), positions)
            return True
        threading.Event().wait(ROOM_POLL_S)
        return time.monotonic() < deadline

    def _trim(self, upto: StreamId, goal_bytes: int) -> int:
        """Remove the oldest chunks that are not after ``upto`` until the goal is met."""
        last, rows = None, 0
        while self._kept and self._kept[0].id <= upto and self._kept_bytes > goal_bytes:
            last = self._kept.popleft()
            self._kept_bytes -= last.nbytes
            rows += last.rows
        if last is not None:
            self._channel.call("XTRIM", self._stream, "MINID", str(last.id.next()))
        return rows

    def _drop(self, goal_bytes: int, positions: Mapping[str, StreamId]) -> None:
        self.dropped += self._trim(self._kept[-1].id, goal_bytes)
        if time.monotonic() > self._next_warning:
            self._next_warning = time.monotonic() + WARN_EVERY_S
            log.warning(
                "store %r is full: dropped the oldest transitions of actor %r, %d so far; %s",
                self._keys.name,
                self._actor,
                self.dropped,
                self._slowest(positions),
                extra=about(self._keys.labels, peer=self._actor),
            )

    def _tell(self, positions: Mapping[str, StreamId]) -> None:
        """Say for what room this actor waits, and who takes it."""
        if time.monotonic() > self._next_tell:
            self._next_tell = time.monotonic() + TELL_EVERY_S
            self.waiting.failed(
                f"room in store {self._keys.name!r}: {size(self._kept_bytes)} of "
                f"{size(self.share_bytes)} are used; {self._slowest(positions)}"
            )

    def _full_message(self, positions: Mapping[str, StreamId]) -> str:
        return (
            f"store {self._keys.name!r} is full: {self._kept_bytes} bytes of actor "
            f"{self._actor!r} are kept, its share of the retention is {self.share_bytes}; "
            f"{self._slowest(positions)}: {self._remedy(positions)}, raise "
            "Retention(max_bytes=…), or, if it is gone for good, run `agentlace consumers forget`"
        )

    def _remedy(self, positions: Mapping[str, StreamId]) -> str:
        slowest = min(positions, key=lambda name: positions[name], default="")
        has_them = applied(self._channel, self._keys, self._actor).get(slowest, START)
        if has_them > positions.get(slowest, START):
            return "it has them, but has not saved them yet: let it save more often (checkpoint)"
        return "start or speed up that consumer"

    def explained(self, error: StoreFull) -> StoreFull:
        """Return the error of a broker that is full, naming who has not read what fills it."""
        try:
            positions = cursors(self._channel, self._keys, self._actor)
            if self._kept and min(positions.values(), default=START) < self._kept[-1].id:
                slowest = self._slowest(positions)
                self.waiting.failed(f"room in the broker: {slowest} in store {self._keys.name!r}")
                return StoreFull(f"{error}; in store {self._keys.name!r} {slowest}")
        except AgentlaceError:
            pass  # it is full, whoever is slow
        return error

    def _slowest(self, positions: Mapping[str, StreamId]) -> str:
        """Say which consumer holds the others up, and how far it is behind this actor."""
        if not positions:
            return "no consumer is registered"
        name = min(positions, key=lambda name: positions[name])
        behind = sum(entry.rows for entry in self._kept if entry.id > positions[name])
        who = described(self._channel, self._keys, name)
        return f"{who} is {behind} transitions behind"
