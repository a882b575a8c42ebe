"""A channel to the node of a cluster that has the keys that it is for.

A node that has not got a key (any more) refuses a command and says who has it. ``ASK``: the key's
slot is being moved, and this key has left already, or is not there yet; the command takes a
detour. ``MOVED``: the slot has another owner; the command takes a detour, and the channel
connects to that owner before the next one, so that whoever counts connections looks again at
what is there. In both cases the refused command was not executed.

A transaction takes a detour as a whole, or not at all: with one of its keys here and another
one there it fails until the slot has moved, and is begun anew by its owner (``TRYAGAIN``). One
that began with a WATCH stays where that is.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from agentlace.codec import Frame
from agentlace.errors import AgentlaceError
from agentlace.transport.channel import CONNECT_TIMEOUT_S, Channel
from agentlace.transport.discovery import HOPS, hash_tag, key_in, redirection
from agentlace.transport.envelope import Envelope
from agentlace.transport.link import Address, Link
from agentlace.transport.pubsub import PLAIN, SHARDED, PubSub
from agentlace.transport.resp import Buffer, Command, ErrorReply, Reply

if TYPE_CHECKING:
    from agentlace.transport.connection import Broker

_STAYING = frozenset({"SSUBSCRIBE", "SUBSCRIBE"})
"""What takes no detour: messages arrive on this channel's own connection."""
_UNWATCHING = frozenset({"EXEC", "DISCARD", "UNWATCH"})


class ClusterChannel(Channel):
    """A channel for the keys of one hash tag; without one, for every key, by detours.

    Args:
        broker: the cluster.
        connect_timeout_s: as for :class:`Channel`.
        key: one of those that it is for.
    """

    def __init__(
        self, broker: Broker, connect_timeout_s: float = CONNECT_TIMEOUT_S, key: str = ""
    ) -> None:
        super().__init__(broker, connect_timeout_s)
        self._key = key
        self._tag = hash_tag(key)
        self._others: dict[str, Channel] = {}
        self._awaited: deque[Command] = deque()
        self._detours: dict[Address, Link] = {}
        self._detour: Link | None = None
        self._watching: Link | None = None
        self._is_transacting = False
        self._has_moved = False
        self._pubsub: PubSub | None = None

    @property
    def home(self) -> str:
        """Return the hash tag of the keys that it is for."""
        return self._tag

    @property
    def is_lost(self) -> bool:
        """Whether there was a connection, and there is none now, also for other tags' keys."""
        return super().is_lost or any(other.is_lost for other in self._others.values())

    def at(self, key: str) -> Channel:
        """Return the channel to use for a key; one of another tag lives as long as this one."""
        tag = hash_tag(key)
        if tag == self._tag:
            return self
        if tag not in self._others:
            self._others[tag] = self.broker.channel(self.connect_timeout_s, key)
            if self._closed:
                self._others[tag].close()
        self._others[tag].timeout_s = self.timeout_s
        return self._others[tag]

    def everywhere(self) -> list[Channel]:
        """Return a channel to each node that has slots."""
        firsts: dict[Address, int] = {}
        for first, _, (host, port, *_), *_ in self.call("CLUSTER", "SLOTS"):
            firsts.setdefault((bytes(host or b"").decode(), int(port)), int(first))
        return [self.at(key_in(slot)) for slot in firsts.values()]

    def pubsub(self) -> PubSub:
        """Return what publish and subscribe are called; a node before Redis 7 has no shards."""
        if self._pubsub is None or not self.is_connected:
            self.connect()
            (reply,) = self.exchange([("COMMAND", "INFO", "SPUBLISH")])
            is_absent = isinstance(reply, list) and reply[:1] in ([None], [[]])
            self._pubsub = PLAIN if is_absent else SHARDED
        return self._pubsub

    def be_back_within(self, seconds: float) -> None:
        """Bound what follows by an owner's deadline, also on the channels of other tags."""
        super().be_back_within(seconds)
        for other in self._others.values():
            other.be_back_within(seconds)

    def _open(self) -> Link:
        return self.broker.open(self.connect_timeout_s, self._key)

    def send(self, commands: Sequence[Command], timeout_s: float | None = None) -> None:
        """Send commands in one write, without waiting for their replies."""
        if self._has_moved and self._watching is None:
            self.disconnect()
        super().send(commands, timeout_s)

    def trade(self, envelope: Envelope, frame: Frame, timeout_s: float) -> Buffer | None:
        """Send a frame in its envelope, and return what the pop at the envelope's end popped."""
        if self._has_moved and self._watching is None:
            self.disconnect()
        self.connect()
        while self._owed > 0:
            self.receive(timeout_s)
        self._awaited = deque(envelope.commands(frame))
        return super().trade(envelope, frame, timeout_s)

    def _write(self, commands: Sequence[Command], timeout_s: float | None) -> None:
        self._awaited = deque(commands)
        super()._write(commands, timeout_s)

    def receive(self, timeout_s: float | None = None) -> Reply:
        """Return the next reply, from wherever its command was executed."""
        reply = super().receive(timeout_s)
        command = self._awaited.popleft() if self._awaited else ()
        name = command[0] if command else ""
        link: Link | None = self._link
        if name in ("MULTI", "EXEC"):
            self._is_transacting = name == "MULTI"
        elif self._may_detour(str(name), reply):
            replies, link = self._detoured([command], reply, timeout_s)
            (reply,) = replies or [reply]
        self._note_watch(str(name), link)
        return reply

    def _may_detour(self, name: str, reply: Reply) -> bool:
        if not isinstance(reply, ErrorReply) or self._is_transacting or name in _STAYING:
            return False
        if reply.code == "MOVED":
            self._note_move()
            return self._watching is None or not self._key
        return _points_elsewhere(reply)

    def _note_watch(self, name: str, link: Link | None) -> None:
        if name == "WATCH":
            self._watching = link
        elif name in _UNWATCHING:
            watched, self._watching = self._watching, None
            if watched is not None and watched is not self._link:
                self._drop(watched)

    def exchange(self, commands: Sequence[Command], timeout_s: float | None = None) -> list[Reply]:
        """Send commands in one write and return their replies; refusals are returned, not raised.

        As in :class:`Channel`; a transaction goes to where its keys are.
        """
        if not commands or commands[0][0] != "MULTI":
            return super().exchange(commands, timeout_s)
        watched = self._watching
        if watched is not None and watched is not self._link and self._link is not None:
            replies = self._ask_at(watched, commands, timeout_s, asking=True)
            self._note_watch("EXEC", watched)
            return replies
        replies = super().exchange(commands, timeout_s)
        refusal = self._common_refusal(replies)
        if refusal is None or watched is not None:
            return replies
        return self._detoured(commands, refusal, timeout_s)[0] or replies

    def _common_refusal(self, replies: list[Reply]) -> ErrorReply | None:
        """Return what refused a transaction's every key, if it was that."""
        *queued, last = replies[1:]
        if _points_elsewhere(last):  # Valkey 9 looks for the keys only at the end
            refusal = last
        elif _points_elsewhere(queued[0]) and len(set(map(str, queued))) == 1:
            refusal = queued[0]
        else:
            return None
        if refusal.code == "MOVED":
            self._note_move()
        return refusal

    def _note_move(self) -> None:
        self.broker.doubt()
        self._has_moved = bool(self._key)

    def _detoured(
        self, commands: Sequence[Command], refusal: Reply, timeout_s: float | None
    ) -> tuple[list[Reply], Link | None]:
        """Send what was refused to where the refusal points.

        Returns the replies of the last node that was asked, none if it points nowhere.
        """
        link, replies = self._link, []
        for _ in range(HOPS):
            target = None if link is None else redirection(refusal, link.address)
            if target is None:
                break
            link = self._link_to(target)
            replies = self._ask_at(link, commands, timeout_s, asking=refusal.code == "ASK")
            refusal = replies[-1]
        return replies, link

    def _ask_at(
        self, link: Link, commands: Sequence[Command], timeout_s: float | None, asking: bool
    ) -> list[Reply]:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        ahead: list[Command] = [("ASKING",)] if asking else []
        self._detour = link
        try:
            return link.ask([*ahead, *commands], timeout_s)[len(ahead) :]
        except BaseException as error:
            self._give_up(error)
        finally:
            self._detour = None

    def _link_to(self, server: Address) -> Link:
        if server not in self._detours:
            interrupts = self._interrupts
            try:
                link = self.broker.open(self.connect_timeout_s, at=server)
            except AgentlaceError as error:
                self._give_up(error)
            with self._guard:
                self._detours[server] = link
            if interrupts != self._interrupts:
                self._give_up(OSError("the connection was interrupted"))
        return self._detours[server]

    def _drop(self, link: Link) -> None:
        with self._guard:
            self._detours = {at: other for at, other in self._detours.items() if other is not link}
        with contextlib.suppress(OSError):
            link.disconnect()

    def _blocked(self) -> Link | None:
        return self._detour or self._link

    def disconnect(self) -> None:
        """Drop the connections for this tag; the next use connects anew."""
        super().disconnect()
        self._awaited.clear()
        self._watching, self._is_transacting, self._has_moved = None, False, False
        for link in list(self._detours.values()):
            self._drop(link)

    def interrupt(self) -> None:
        """Wake the thread that connects or reads with this channel: what it does fails."""
        super().interrupt()
        with self._guard:
            links = list(self._detours.values())
        for link in links:
            link.shutdown()
        for other in list(self._others.values()):
            other.interrupt()

    def close(self) -> None:
        """Close for good, also the channels for other tags' keys."""
        super().close()
        for other in list(self._others.values()):
            other.close()


def _points_elsewhere(reply: Reply) -> TypeGuard[ErrorReply]:
    return isinstance(reply, ErrorReply) and reply.code in ("ASK", "MOVED")
