"""An actor's end of a transition stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentlace import codec
from agentlace.errors import (
    ActorReplaced,
    AgentlaceError,
    BrokerUnreachable,
    EncodeError,
    StoreFull,
)
from agentlace.logs import Refrain, about
from agentlace.transport import facts
from agentlace.transport.backoff import insist
from agentlace.transport.connection import Channel, Passing
from agentlace.transport.cutting import cut
from agentlace.transport.durability import Durability
from agentlace.transport.held import HELD_MAX_BYTES, Held, Sent
from agentlace.transport.keys import StoreKeys
from agentlace.transport.pending import Pending
from agentlace.transport.resp import ErrorReply
from agentlace.transport.room import Room
from agentlace.transport.streams import (
    START,
    Retention,
    StreamId,
    announce,
    applied,
    cursors,
    forget_if_read,
    newest_id,
    role_of,
)
from agentlace.waits import Wait

log = logging.getLogger(__name__)


class Producer:
    """Appends chunks to one actor's stream. Not thread-safe: its owner holds a lock.

    Nothing is sent before the chunk before it is confirmed: were chunk k refused and k + 1
    accepted, a retry of k would look stored. What is not confirmed stays in :attr:`pending`
    and goes first in the next call.

    A broker confirms before its log is on disk, if it has one at all. What it would have
    forgotten if it came back older than it was, or empty, is held (HELD_MAX_BYTES at most) and
    then sent again. A thread beside this one finds out what that is (Durability).

    Args:
        channel: for the stream's commands; may be shared with the client's other streams.
        keys: which store.
        actor: the actor's identity.
        retention: returns the store's present retention.
        stores: returns how many stores the trainer has: they share what the broker has for streams.

    Attributes:
        pending: what the broker has not confirmed, oldest first.
    """

    def __init__(
        self,
        channel: Channel,
        keys: StoreKeys,
        actor: str,
        retention: Callable[[], Retention],
        stores: Callable[[], int] = lambda: 1,
    ) -> None:
        self._channel = channel = channel.at(keys.prefix)
        channel.spins = True
        self._keys = keys
        self._actor = actor
        self._stream = keys.stream(actor)
        self._room = Room(channel, keys, actor, retention, stores)
        self._incarnation: int | None = None
        self._connects = 0
        self._beat_connects = 0
        self._in_doubt = False
        self._is_there = False
        self._data = b""
        self._held = Held()
        self._durability = Durability(channel.broker, keys, actor, self._held)
        self._may_forget = channel.broker.url.scheme != "memory"
        self._encoder = codec.ChunkEncoder()
        self.pending = Pending()
        self._refrain = Refrain()

    def _about(self, error: Exception | None = None) -> dict[str, Any]:
        return about(self._keys.labels, peer=self._actor, error=error)

    @property
    def dropped(self) -> int:
        """Transitions that no consumer had read when they were dropped."""
        return self._room.dropped

    @property
    def sent_bytes(self) -> int:
        """Bytes of all chunks that the broker has confirmed."""
        return self._room.kept_bytes

    def waits(self) -> Iterator[Wait]:
        """Yield what is waited for until more can be sent."""
        return self._room.waiting.waits()

    @property
    def number(self) -> int:
        """Number of the last transition or mark that was taken."""
        return self.pending.number

    def take(self, rows: Sequence[Any], meta: Mapping[str, Any]) -> None:
        """Encode transitions and put them behind those that are pending.

        Raises:
            EncodeError: a transition may not travel; all others were taken.
        """
        errors: list[EncodeError] = []
        for frame, n in cut(self._encoder, list(rows), meta, errors):
            self.pending.take(frame, n)
        if errors:
            text, fields = "%d transitions of store %r may not travel", self._about(errors[0])
            args = (len(errors), self._keys.name)
            self._refrain.say(log.error, errors[0], text, *args, extra=fields)
            raise errors[0]

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
        insist(lambda: self._flush(deadline, timeout_s), Passing, deadline)

    def _flush(self, deadline: float, timeout_s: float) -> None:
        if not self.pending.is_due and not self._in_doubt:
            return
        self._channel.be_back_within(deadline - time.monotonic())
        while self.pending.is_due or self._in_doubt:
            self._channel.settle(max(deadline - time.monotonic(), 0.0))
            is_first = self._incarnation is None
            self._meet_broker()
            if is_first:  # that does not count: programs have deadlines of 5 ms
                deadline = time.monotonic() + timeout_s
            if self.pending.is_due and self._confirm(self.pending[0], deadline):
                confirmed = self.pending.popleft()
                if self._may_forget:
                    self._held.keep(confirmed)
                    self._durability.wake()

    def _meet_broker(self) -> None:
        """Begin an incarnation, or look what a broker that was lost meanwhile still has."""
        channel = self._channel
        channel.connect()
        is_known = self._incarnation is not None and channel.connects == self._connects
        if is_known and not self._in_doubt:
            return
        self._in_doubt = False  # from here on a heartbeat may come to doubt again
        try:
            self._look_at(channel)
        except BaseException:
            self._in_doubt = True
            raise
        self._connects = channel.connects

    def _look_at(self, channel: Channel) -> None:
        told = facts.ask(channel, self._keys)
        newest = newest_id(channel, self._stream)
        self._is_there = newest != START
        self._room.limit_bytes = told.maxmemory // 2
        if self._incarnation is None:
            self._open(newest)
        else:
            self._take_back(newest, is_new=told.data != self._data)
        self._held.meet(told.run)
        self._data = told.data

    def _open(self, newest: StreamId) -> None:
        """Begin an incarnation: larger than the broker's time and every earlier one."""
        channel = self._channel
        seconds, micros = channel.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        known = [newest, *cursors(channel, self._keys, self._actor).values()]
        incarnation = max(now_ms, max(known).incarnation + 1)
        self.register(channel)
        self._held.clear()
        if newest.number:
            self._room.adopt(newest)
        self._incarnation = self._durability.incarnation = incarnation

    def _take_back(self, newest: StreamId, is_new: bool) -> None:
        """Send again what was confirmed, if the broker has forgotten it."""
        assert self._incarnation is not None
        there = newest.number if newest.incarnation == self._incarnation else 0
        if newest.incarnation > self._incarnation:
            return  # the next chunk will be refused
        self._room.forget_after(newest)
        lost = self._held.take_after(there)
        self.pending.extendleft(reversed(lost))
        if lost or is_new:
            first = self.pending[0].first if self.pending else self.number + 1
            log.warning(
                "store %r: the broker has come back %s: %d transitions of actor %r are sent again,"
                " %d are not held any more",
                self._keys.name,
                "empty" if is_new else "older than it was",
                sum(chunk.rows for chunk in lost),
                self._actor,
                first - there - 1,
                extra=self._about(),
            )
            self.register(self._channel)

    def register(self, channel: Channel) -> bytes:
        """Make the stream known to consumers; called again at every heartbeat.

        A broker that came back empty has forgotten it, and a consumer that took this actor for
        dead has given its stream an expiry. Returns the broker's identity.
        """
        actors, data = announce(channel, self._keys, self._actor)
        self._room.share_with(actors)
        return data

    def _confirm(self, chunk: Sent, deadline: float) -> bool:
        """Return when the broker has the chunk: stored by this or by an earlier attempt.

        False if the stream has vanished, with all that was in it.
        """
        assert self._incarnation is not None
        chunk_id = StreamId(self._incarnation, chunk.last)
        if not (chunk.was_sent and self._is_stored(chunk_id)):
            self._room.make(chunk.frame.nbytes, deadline)
            if not self._append_in_time(chunk, chunk_id, deadline):
                self._in_doubt = True
                return False
        self._room.keep(chunk_id, chunk.rows, chunk.frame.nbytes)
        return True

    def _append_in_time(self, chunk: Sent, chunk_id: StreamId, deadline: float) -> bool:
        """Append to the stream, making room in a broker that is full."""
        while True:
            try:
                return self._append(chunk, chunk_id, deadline)
            except StoreFull as error:
                if not self._room.relieve(chunk.frame.nbytes, deadline):
                    raise self._room.explained(error) from error

    def _append(self, chunk: Sent, chunk_id: StreamId, deadline: float) -> bool:
        channel = self._channel
        chunk.was_sent = True
        # That the stream does not expire meanwhile is the heartbeat's business. If it is not
        # there all the same, nothing may follow what was in it before that is sent again.
        guard = ("NOMKSTREAM",) if self._is_there else ()
        entry = (b"%d-%d" % chunk_id, "first", chunk.first, chunk.field, chunk.frame)
        channel.send([("XADD", self._stream, *guard, *entry)])
        if self._may_forget and chunk.frame.nbytes <= HELD_MAX_BYTES:
            chunk.own()  # it will be held, and while the broker takes it there is time to copy it
        channel.settle(max(deadline - time.monotonic(), 0.0))
        added = channel.receive()
        if not (isinstance(added, ErrorReply) and "equal or smaller" in str(added)):
            channel.checked([added])
        elif not self._is_stored(chunk_id):
            raise BrokerUnreachable(str(channel.broker.url), f"{self._stream} was taken away")
        self._is_there = added is not None
        return self._is_there

    def _is_stored(self, chunk_id: StreamId) -> bool:
        """Whether the stream has a chunk, which is told by its newest ID.

        Raises:
            ActorReplaced: a newer process uses this actor's identity.
        """
        if (newest := newest_id(self._channel, self._stream)).incarnation > chunk_id.incarnation:
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
        positions = applied(channel.at(self._keys.prefix), self._keys, self._actor)
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
        if self.register(channel) != self._data:
            self._in_doubt = True

    def close(self, channel: Channel, timeout_s: float) -> None:
        """Say goodbye: the stream may go as soon as every consumer has read it."""
        if self._incarnation is None:
            return
        try:
            self.flush(timeout_s)
        except AgentlaceError as error:
            text = "store %r: not all was sent at the end: %s"
            log.warning(text, self._keys.name, error, extra=self._about(error))
        mine, self._incarnation = self._incarnation, None  # no heartbeat takes the goodbye back
        self._durability.stop()
        self._held.clear()
        channel = channel.at(self._keys.prefix)
        channel.be_back_within(timeout_s)
        if newest_id(channel, self._stream).incarnation <= mine:  # else it is another's
            channel.call("SADD", self._keys.closed, self._actor)
            forget_if_read(channel, self._keys, self._actor)
