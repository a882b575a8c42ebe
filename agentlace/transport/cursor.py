"""A consumer among the others: registered at the broker, its position in each stream published.

What every registered consumer has read may be trimmed, so a position is published only after
its transitions were applied, and trusted only as long as its consumer is registered.

A consumer whose store lasts only from one commit to the next (a checkpoint, a finished file)
publishes two positions: the *committed* one, which lets streams be trimmed, and the *applied*
one, for those who wait until their transitions are in the store.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from agentlace.errors import AlreadyServed, BrokerAuthFailed, StoreFull
from agentlace.logs import about
from agentlace.transport.connection import Channel
from agentlace.transport.keys import SEEN_MS, StoreKeys
from agentlace.transport.presence import read_peer
from agentlace.transport.resp import Command, ErrorReply, Reply
from agentlace.transport.streams import START, StreamId, consumers, cursors, role_of
from agentlace.transport.succession import let_go, pass_what_is_gone

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 0.2
"""While it works through what it has fetched, a consumer publishes no more often than this."""


class Lease(NamedTuple):
    """The presence key of a server, and the token that it holds while the server is the one."""

    key: str
    token: str


class Cursor:
    """Where one consumer stands. For the consumer's own thread, but for :meth:`commit`.

    Args:
        channel: the consumer's.
        keys: which store.
        name: of the consumer; its role, or ``role:which``.
        positions: last applied ID per actor; updated in place.
        committed: if given, these positions let streams be trimmed, and are moved by
            :meth:`commit`, in place; else what is applied counts as committed.
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
        committed: dict[str, StreamId] | None = None,
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._name = name
        self._key = keys.cursor(name)
        self._lease = lease
        self._moved: dict[str, StreamId] = {}
        self._applied: dict[str, StreamId] = {}
        self._next_publish = 0.0
        self._lock = threading.Lock()
        self._progress_s = time.monotonic()
        self.positions = positions
        self.committed = positions if committed is None else committed

    def register(self) -> int:
        """Make this consumer known, so that nothing that it has not read is trimmed.

        Also publishes where it stands: from the start, if its store is empty. All at once, and
        not at all in a broker that is full: those that it replaces then stay registered, and
        what they have not read stays for it. It may read on: that makes the room.

        Returns:
            The number of transitions that are lost, since the consumers that it replaces let
            them go before its store had them. A store that begins empty does not miss them.

        Raises:
            AlreadyServed: another server holds the lease.
        """
        others = [] if self._lease is None else self._replaced(self._lease)
        lost = 0
        if others and self.positions:
            trimmed = let_go(self._channel, self._keys, others)
            lost = pass_what_is_gone(self._channel, self._keys, self.positions, trimmed)
        commands: list[Command] = [
            ("SADD", self._keys.consumers, self._name),
            ("DEL", self._key, self._keys.applied(self._name)),
        ]
        with self._lock:
            commands += self._hset(self.committed)
            self._moved = {}
        if self._commits_later:
            commands += _hset(self._keys.applied(self._name), self.positions)
            self._applied = {}
        for name in others:
            commands.append(("SREM", self._keys.consumers, name))
            keys = self._keys
            commands.append(("DEL", keys.cursor(name), keys.applied(name), keys.consumer(name)))
        try:
            self._channel.checked(self._channel.exchange([("MULTI",), *commands, ("EXEC",)]))
        except StoreFull as error:
            text = "consumer %r reads on unregistered: %s"
            fields = about(self._keys.labels, error=error)
            log.warning(text, self._name, error, extra=fields)
            self.forget_what_was_published()
            return lost
        self._say()
        return lost

    def _say(self) -> None:
        """Say who this consumer is, that it is there, and when it last moved."""
        channel, key = self._channel, self._keys.consumer(self._name)
        progress_ms = channel.broker.now_ms() - 1000 * (time.monotonic() - self._progress_s)
        info = {
            "role": "consumer",
            "name": self._name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "progress_ms": round(progress_ms),
        }
        try:
            channel.call("SET", key, json.dumps(info), "PX", SEEN_MS)
        except StoreFull:
            channel.call("PEXPIRE", key, SEEN_MS)

    def _replaced(self, lease: Lease) -> list[str]:
        """Return the names of the consumers that this one replaces."""
        holder = read_peer(self._channel.at(lease.key), lease.key)
        if holder is not None and holder["token"] != lease.token:
            raise AlreadyServed(f"store {self._keys.name!r} is consumed by {holder['host']} now")
        role = role_of(self._name)
        others = [name for name in consumers(self._channel, self._keys) if role_of(name) == role]
        return [name for name in others if name != self._name]

    def keep_registered(self) -> None:
        """Register anew if this consumer was taken off the list; else say that it is there."""
        if self._channel.call("SISMEMBER", self._keys.consumers, self._name):
            self._say()
        else:
            self.register()

    def move(self, actor: str, entry: StreamId) -> None:
        """Take note that everything up to this entry was applied."""
        self.positions[actor] = entry
        moved = self._applied if self._commits_later else self._moved
        moved[actor] = entry
        self._progress_s = time.monotonic()

    @property
    def _commits_later(self) -> bool:
        return self.committed is not self.positions

    def commit(self, positions: Mapping[str, StreamId]) -> None:
        """Take note that everything up to these entries is kept for good; from any thread.

        Without effect if what is applied counts as committed.
        """
        if not self._commits_later:
            return
        with self._lock:
            moved = {a: at for a, at in positions.items() if self.committed.get(a) != at}
            self.committed.update(moved)
            self._moved.update(moved)

    def forget_what_was_published(self) -> None:
        """Publish all positions the next time."""
        with self._lock:
            self._moved = dict(self.committed)
        self._applied = dict(self.positions) if self._commits_later else {}

    def commands(self) -> list[Command]:
        """Return what publishes the positions that have moved; give the reply to :meth:`check`."""
        with self._lock:
            moved, self._moved = self._moved, {}
        applied, self._applied = self._applied, {}
        self._next_publish = time.monotonic() + PUBLISH_EVERY_S
        return [*self._hset(moved), *_hset(self._keys.applied(self._name), applied)]

    def _hset(self, positions: Mapping[str, StreamId]) -> list[Command]:
        return _hset(self._key, positions)

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
        for actor, position in list(self.committed.items()):
            others = cursors(self._channel, self._keys, actor)
            others.pop(self._name, None)
            read = min([position, *others.values()])
            if read == START:
                continue
            try:
                self._channel.call("XTRIM", self._keys.stream(actor), "MINID", str(read.next()))
            except BrokerAuthFailed as error:  # a recorder only reads; the actors trim as well
                if not error.is_forbidden:
                    raise
                return


def _hset(key: str, positions: Mapping[str, StreamId]) -> list[Command]:
    if not positions:
        return []
    pairs = [part for actor, at in positions.items() for part in (actor, str(at))]
    return [("HSET", key, *pairs)]
