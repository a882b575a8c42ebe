"""A consumer among the others: registered at the broker, its position in each stream published.

What every registered consumer has read may be trimmed, so a position is published only after
its transitions were applied, and trusted only as long as its consumer is registered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from agentlace.errors import AlreadyServed, StoreFull
from agentlace.transport.connection import Channel
from agentlace.transport.keys import StoreKeys
from agentlace.transport.presence import read_peer
from agentlace.transport.resp import Command, ErrorReply, Reply
from agentlace.transport.streams import START, StreamId, consumers, cursors, role_of

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 0.2
"""While it works through what it has fetched, a consumer publishes no more often than this."""


class Lease(NamedTuple):
    """The presence key of a server, and the token that it holds while the server is the one."""

    key: str
    token: str


class Cursor:
    """Where one consumer stands. For the consumer's own thread.

    Args:
        channel: the consumer's.
        keys: which store.
        name: of the consumer; its role, or ``role:which``.
        positions: last applied ID per actor; updated in place.
        lease: if given, this consumer replaces the others of its role, for as long as it holds
            the lease. One that was replaced without noticing (it slept) can then neither move its
            successor's positions nor have streams trimmed that only it has read.
    """

    def __init__(
        self,
        channel: Channel,
        keys: StoreKeys,
        name: str,
        positions: dict[str, StreamId],
        lease: Lease | None = None,
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._name = name
        self._key = keys.cursor(name)
        self._lease = lease
        self._moved: dict[str, StreamId] = {}
        self._next_publish = 0.0
        self.positions = positions

    def register(self) -> None:
        """Make this consumer known, so that nothing that it has not read is trimmed.

        Also publishes where it stands: from the start, if its store is empty.

        Raises:
            AlreadyServed: another server holds the lease.
        """
        commands: list[Command] = [("SADD", self._keys.consumers, self._name), ("DEL", self._key)]
        commands += self._hset(self.positions)
        if self._lease is not None:
            commands += self._succession(self._lease)
        self._moved = {}
        self._channel.checked(self._channel.exchange(commands))

    def _succession(self, lease: Lease) -> list[Command]:
        """Return what removes the consumers that this one replaces."""
        holder = read_peer(self._channel.at(lease.key), lease.key)
        if holder is not None and holder["token"] != lease.token:
            raise AlreadyServed(f"store {self._keys.name!r} is consumed by {holder['host']} now")
        role = role_of(self._name)
        others = [name for name in consumers(self._channel, self._keys) if role_of(name) == role]
        others = [name for name in others if name != self._name]
        return [
            command
            for name in others
            for command in (("SREM", self._keys.consumers, name), ("DEL", self._keys.cursor(name)))
        ]

    def keep_registered(self) -> None:
        """Register anew if this consumer was taken off the list."""
        if not self._channel.call("SISMEMBER", self._keys.consumers, self._name):
            self.register()

    def move(self, actor: str, entry: StreamId) -> None:
        """Take note that everything up to this entry was applied."""
        self.positions[actor] = self._moved[actor] = entry

    def forget_what_was_published(self) -> None:
        """Publish all positions the next time."""
        self._moved = dict(self.positions)

    def commands(self) -> list[Command]:
        """Return what publishes the positions that have moved; give the reply to :meth:`check`."""
        moved, self._moved = self._moved, {}
        self._next_publish = time.monotonic() + PUBLISH_EVERY_S
        return self._hset(moved)

    def _hset(self, positions: Mapping[str, StreamId]) -> list[Command]:
        if not positions:
            return []
        pairs = [part for actor, at in positions.items() for part in (actor, str(at))]
        return [("HSET", self._key, *pairs)]

    def check(self, replies: list[Reply]) -> None:
        """Look at the reply to :meth:`commands`; in a broker that is full, make room for it.

        Raises:
            AgentlaceError: it was refused for another reason.
        """
        if not any(isinstance(reply, ErrorReply) for reply in replies):
            return
        self.forget_what_was_published()
        try:
            self._channel.checked(replies)
        except StoreFull:
            self._trim_read()

    def publish(self, is_urgent: bool = True) -> None:
        """Publish the positions that have moved, if it is time to."""
        if is_urgent or time.monotonic() > self._next_publish:
            commands: list[Any] = self.commands()
            self.check(self._channel.exchange(commands) if commands else [])

    def _trim_read(self) -> None:
        """Remove what all consumers have read, taking this one's own word for its positions.

        A full broker refuses to note them, while the producers wait for them to be noted.
        """
        for actor, position in self.positions.items():
            others = cursors(self._channel, self._keys, actor)
            others.pop(self._name, None)
            read = min([position, *others.values()])
            if read != START:
                self._channel.call("XTRIM", self._keys.stream(actor), "MINID", str(read.next()))
