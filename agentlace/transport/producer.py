"""An actor's end of a transition stream."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentlace import codec
from agentlace.errors import (
    ActorReplaced,
    AgentlaceError,
    BrokerAuthFailed,
    BrokerUnreachable,
    EncodeError,
    StoreFull,
)
from agentlace.transport.backoff import insist
from agentlace.transport.connection import Channel, Passing, Refused
from agentlace.transport.keys import JOINED_MAX, StoreKeys
from agentlace.transport.recent import Recent, Sent
from agentlace.transport.resp import ErrorReply
from agentlace.transport.room import Room
from agentlace.transport.streams import (
    START,
    Retention,
    StreamId,
    cursors,
    forget_if_read,
    newest_id,
    role_of,
)

log = logging.getLogger(__name__)

CHUNK_MAX_ROWS = 4096
CHUNK_MAX_BYTES = 8 << 20
"""A larger batch is split; a consumer's memory and the time it holds its store are bounded."""


class Producer:
    """Appends chunks to one actor's stream. Not thread-safe: its owner holds a lock.

    Nothing is sent before the chunk before it is confirmed: were chunk k refused and k + 1
    accepted, a retry of k would look stored. What is not confirmed stays in :attr:`pending`
    and goes first in the next call.

    A broker that writes a log answers before the log is on disk, and with ``everysec`` for up
    to two seconds even before it is written. What was confirmed shortly before is kept (Recent),
    and sent again if the broker was killed and has come back without it.

    Args:
        channel: for the stream's commands; may be shared with the client's other streams.
        keys: which store.
        actor: the actor's identity.
        retention: returns the store's present retention.
    """

    def __init__(
        self, channel: Channel, keys: StoreKeys, actor: str, retention: Callable[[], Retention]
    ) -> None:
        self._channel = channel = channel.at(keys.prefix)
        self._keys = keys
        self._actor = actor
        self._stream = keys.stream(actor)
        self._room = Room(channel, keys, actor, retention)
        self._incarnation: int | None = None
        self._connects = 0
        self._beat_connects = 0
        self._in_doubt = False
        self._is_logged = False
        self._recent = Recent()
        self._encoder = codec.ChunkEncoder()
        self.pending: deque[Sent] = deque()
        self.number = 0

    @property
    def dropped(self) -> int:
        """Transitions that no consumer had read when they were dropped."""
        return self._room.dropped

    def take(self, rows: Sequence[Any], meta: Mapping[str, Any]) -> None:
        """Encode transitions and put them behind those that are pending.

        Raises:
            EncodeError: a transition may not travel; all others were taken.
        """
        rows = list(rows)
        errors: list[EncodeError] = []
        for start in range(0, len(rows), CHUNK_MAX_ROWS):
            self._take_split(rows[start : start + CHUNK_MAX_ROWS], meta, errors)
        if errors:
            log.error("%d transitions of store %r may not travel", len(errors), self._keys.name)
            raise errors[0]

    def untake(self, number: int) -> None:
        """Give back what was taken after this number, unsent."""
        while self.pending and self.pending[-1].first > number:
            self.pending.pop()
        self.number = number

    def _take_split(
        self, rows: list[Any], meta: Mapping[str, Any], errors: list[EncodeError]
    ) -> None:
        """Take rows as one chunk, or in halves if they are too large or one may not travel."""
        try:
            frame = self._encoder.encode(rows, meta)
        except EncodeError as error:
            if len(rows) == 1:
                errors.append(error)
                return
            frame = None
        if frame is None or (frame.nbytes > CHUNK_MAX_BYTES and len(rows) > 1):
            middle = len(rows) // 2
            self._take_split(rows[:middle], meta, errors)
            self._take_split(rows[middle:], meta, errors)
            return
        first, self.number = self.number + 1, self.number + len(rows)
        self.pending.append(Sent(first, self.number, frame))

    def flush(self, timeout_s: float) -> None:
        """Send what is pending; blocks until the broker has it, at most ``timeout_s``.

        A chunk that takes longer, over a slow link, is not begun anew: the next call goes on
        waiting for its confirmation.

        Raises:
            BrokerUnreachable: the broker is away, or not done yet; what is pending stays.
            StoreFull: no room; what is pending stays.
            ActorReplaced: a newer process uses this actor's identity.
        """
        deadline = time.monotonic() + timeout_s
        # It passes that the stream is being moved, or that a replica takes over.
        insist(lambda: self._flush(deadline), Passing, deadline)

    def _flush(self, deadline: float) -> None:
        if not self.pending and not self._in_doubt:
            return
        self._channel.be_back_within(deadline - time.monotonic())
        while self.pending or self._in_doubt:
            self._channel.settle(max(deadline - time.monotonic(), 0.0))
            self._meet_broker()
            if self.pending:
                self._confirm(self.pending[0], deadline)
                confirmed = self.pending.popleft()
                if self._is_logged:
                    self._recent.keep(confirmed)

    def _meet_broker(self) -> None:
        """Begin an incarnation, or look what a broker that was lost meanwhile still has."""
        channel = self._channel
        channel.connect()
        is_known = self._incarnation is not None and channel.connects == self._connects
        if is_known and not self._in_doubt:
            return
        self._in_doubt = False  # from here on a heartbeat may come to doubt again
        try:
            if self._incarnation is None:
                self._open()
            else:
                self._take_back()
            self._is_logged = b"aof_enabled:1" in _info(channel, "persistence")
            self._is_logged |= channel.broker.url.has_replicas
            self._room.limit_bytes = _maxmemory(_info(channel, "memory")) // 2
        except BaseException:
            self._in_doubt = True
            raise
        self._connects = channel.connects

    def _open(self) -> None:
        """Begin an incarnation: larger than the broker's time and every earlier one."""
        channel = self._channel
        seconds, micros = channel.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        newest = newest_id(channel, self._stream)
        known = [newest, *cursors(channel, self._keys, self._actor).values()]
        incarnation = max(now_ms, max(known).incarnation + 1)
        self.register(channel)
        self._recent.clear()
        if newest.number:
            self._room.keep(newest, 0, self._stream_bytes())
        self._incarnation = incarnation

    def _stream_bytes(self) -> int:
        """Return what this actor's predecessor has left in the stream; 0 if nobody may ask."""
        try:
            return int(self._channel.call("MEMORY", "USAGE", self._stream) or 0)
        except (BrokerAuthFailed, Refused):
            return 0

    def _take_back(self) -> None:
        """Send again what was confirmed, if the broker has forgotten it."""
        assert self._incarnation is not None
        newest = newest_id(self._channel, self._stream)
        there = newest.number if newest.incarnation == self._incarnation else 0
        if newest.incarnation > self._incarnation:
            return  # the next chunk will be refused
        self._room.forget_after(newest)
        lost = self._recent.take_after(there)
        if lost:
            log.warning("store %r: the broker has forgotten %d chunks", self._keys.name, len(lost))
            self.register(self._channel)
            self.pending.extendleft(reversed(lost))

    def register(self, channel: Channel) -> None:
        """Make the stream known to consumers; called again at every heartbeat.

        A broker that came back empty has forgotten it, and a consumer that took this actor for
        dead has given its stream an expiry.
        """
        commands: list[Any] = [
            ("SADD", self._keys.actors, self._actor),
            ("SCARD", self._keys.actors),
            ("SREM", self._keys.closed, self._actor),
            ("PERSIST", self._stream),
        ]
        added, actors, *_ = channel.checked(channel.exchange(commands))
        if added:
            arrival = ("XADD", self._keys.joined, "MAXLEN", "~", JOINED_MAX, "*")
            channel.call(*arrival, "actor", self._actor)
        self._room.share_with(int(actors))

    def _confirm(self, chunk: Sent, deadline: float) -> None:
        """Return when the broker has the chunk: stored by this or by an earlier attempt."""
        assert self._incarnation is not None
        chunk_id = StreamId(self._incarnation, chunk.last)
        if not (chunk.was_sent and self._is_stored(chunk_id)):
            self._room.make(chunk.frame.nbytes, deadline)
            self._append_in_time(chunk, chunk_id, deadline)
        self._room.keep(chunk_id, chunk.last - chunk.first + 1, chunk.frame.nbytes)

    def _append_in_time(self, chunk: Sent, chunk_id: StreamId, deadline: float) -> None:
        """Append to the stream, making room in a broker that is full."""
        while True:
            try:
                return self._append(chunk, chunk_id, deadline)
            except StoreFull:
                if not self._room.relieve(chunk.frame.nbytes, deadline):
                    raise

    def _append(self, chunk: Sent, chunk_id: StreamId, deadline: float) -> None:
        channel = self._channel
        chunk.was_sent = True
        # That the stream does not expire meanwhile is the heartbeat's business.
        entry = (b"%d-%d" % chunk_id, "first", chunk.first, "chunk", chunk.frame)
        channel.send([("XADD", self._stream, *entry)])
        channel.settle(max(deadline - time.monotonic(), 0.0))
        added = channel.receive()
        if not (isinstance(added, ErrorReply) and "equal or smaller" in str(added)):
            channel.checked([added])
        elif not self._is_stored(chunk_id):
            raise BrokerUnreachable(str(channel.broker.url), f"{self._stream} was taken away")

    def _is_stored(self, chunk_id: StreamId) -> bool:
        """Whether the stream has a chunk, which is told by its newest ID.

        Raises:
            ActorReplaced: a newer process uses this actor's identity.
        """
        newest = newest_id(self._channel, self._stream)
        if newest.incarnation > chunk_id.incarnation:
            raise ActorReplaced(
                f"a newer process uses actor_id {self._actor!r} of store {self._keys.name!r}: "
                "give each actor its own actor_id, or none"
            )
        return newest >= chunk_id

    def applied(self, channel: Channel, role: str) -> int:
        """Return the number of the last transition that a consumer has applied; 0 before any.

        Args:
            channel: to ask on.
            role: what the consumer is; the one that registered last counts.
        """
        positions = cursors(channel.at(self._keys.prefix), self._keys, self._actor)
        mine = [p for name, p in positions.items() if role_of(name) == role]
        position = max(mine, default=START)
        return position.number if position.incarnation == self._incarnation else 0

    def beat(self, channel: Channel) -> None:
        """Make the stream known again, if it was ever used; from the heartbeat's thread."""
        if self._incarnation is None:
            return
        channel = channel.at(self._keys.prefix)
        channel.connect()
        if channel.connects != self._beat_connects:
            self._beat_connects, self._in_doubt = channel.connects, True
        self.register(channel)

    def close(self, channel: Channel, timeout_s: float) -> None:
        """Say goodbye: the stream may go as soon as every consumer has read it."""
        if self._incarnation is None:
            return
        try:
            self.flush(timeout_s)
        except AgentlaceError as error:
            log.warning("store %r: not all was sent at the end: %s", self._keys.name, error)
        mine, self._incarnation = self._incarnation, None  # no heartbeat takes the goodbye back
        channel = channel.at(self._keys.prefix)
        channel.be_back_within(timeout_s)
        if newest_id(channel, self._stream).incarnation <= mine:  # else it is another's
            channel.call("SADD", self._keys.closed, self._actor)
            forget_if_read(channel, self._keys, self._actor)


def _info(channel: Channel, section: str) -> bytes:
    """Return what the broker says of itself; nothing if this user may not ask."""
    try:
        return bytes(channel.call("INFO", section))
    except (BrokerAuthFailed, Refused):
        return b""


def _maxmemory(info: bytes) -> int:
    """Return the broker's limit of memory in bytes; 0 if there is none."""
    found = re.search(rb"maxmemory:(\d+)", info)
    return int(found[1]) if found else 0
