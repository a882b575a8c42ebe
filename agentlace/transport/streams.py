"""What producers and consumers of transition streams share.

One stream per (store, actor). An entry is a chunk of n transitions; its ID is
``<incarnation>-<number of the chunk's last transition>``, chosen by the producer, and the
broker refuses an ID that is not larger than the newest. So a retry cannot duplicate, and an
actor that was replaced is fenced off. An entry has two fields: ``first``, the number of the
chunk's first transition, and ``chunk``, the frame.

Between chunks there may be marks, which say where an episode begins, ends, or is discarded. A
mark's entry has the fields ``first`` and ``mark``, and takes one number of its own, as if it
were a transition; so retries, fences and gaps are the same for both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from agentlace.errors import BrokerAuthFailed, DecodeError
from agentlace.logs import about
from agentlace.transport.connection import Channel, Refused
from agentlace.transport.keys import FENCE_MS, JOINED_MAX, ORPHAN_MS, StoreKeys
from agentlace.transport.resp import Reply

log = logging.getLogger(__name__)


MAX_NUMBER = (1 << 64) - 1


class StreamId(NamedTuple):
    """Position in one actor's stream; ordered."""

    incarnation: int
    number: int

    def __str__(self) -> str:
        """Return the broker's form."""
        return f"{self.incarnation}-{self.number}"

    def next(self) -> StreamId:
        """Return the first position after this one."""
        if self.number == MAX_NUMBER:
            return StreamId(self.incarnation + 1, 0)
        return StreamId(self.incarnation, self.number + 1)

    @classmethod
    def parse(cls, text: bytes) -> StreamId:
        """Parse the broker's form; raises DecodeError."""
        try:
            incarnation, number = bytes(text).split(b"-")
            return cls(int(incarnation), int(number))
        except ValueError as error:
            raise DecodeError(f"a position in a stream of {bytes(text[:40])!r}") from error


START = StreamId(0, 0)


@dataclass(frozen=True)
class Retention:
    """How much of a store's streams the broker keeps, and what happens when that is used up.

    Attributes:
        max_bytes: of all streams of the store together; each actor has an equal share.
        when_full: ``block``: nothing is trimmed that a consumer has not read, ``update()``
            waits and then fails; ``drop_oldest``: the oldest go, counted on both sides.
    """

    max_bytes: int = 1 << 30
    when_full: str = "block"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.when_full not in ("block", "drop_oldest"):
            raise ValueError(f"when_full={self.when_full!r}: use 'block' or 'drop_oldest'")
        if self.max_bytes <= 0:
            raise ValueError(f"max_bytes={self.max_bytes} must be positive")

    @classmethod
    def of_info(cls, told: Any) -> Retention:
        """Return what a server's presence says; the default where that makes no sense."""
        try:
            return cls(int(told["max_bytes"]), told["when_full"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return cls()

    def to_info(self) -> dict[str, Any]:
        """Return what the server's presence says of it."""
        return asdict(self)


def newest_id(channel: Channel, stream: str) -> StreamId:
    """Return the newest ID that the stream ever had; START if there is no stream."""
    try:
        info = channel.call("XINFO", "STREAM", stream)
    except Refused as error:
        if "no such key" not in str(error):
            raise
        return START
    fields = dict(zip(info[::2], info[1::2], strict=True))
    return StreamId.parse(fields[b"last-generated-id"])


def announce(channel: Channel, keys: StoreKeys, actor: str) -> tuple[int, bytes]:
    """Make an actor's stream known to consumers, and keep it from expiring.

    Returns how many actors the store has, and the broker's identity.
    """
    commands: list[Any] = [
        ("SADD", keys.actors, actor),
        ("SCARD", keys.actors),
        ("SREM", keys.closed, actor),
        ("PERSIST", keys.stream(actor)),
        ("GET", keys.identity),
    ]
    added, actors, _, _, data = channel.checked(channel.exchange(commands))
    if added:
        arrival = ("XADD", keys.joined, "MAXLEN", "~", JOINED_MAX, "*")
        channel.call(*arrival, "actor", actor)
    return int(actors), bytes(data or b"")


def names_in(reply: Iterable[Reply]) -> list[str]:
    """Return the names in a broker's answer; what is no text is no name of ours, and left out."""
    found = []
    for name in reply:
        try:
            found.append(bytes(name).decode())
        except UnicodeDecodeError:
            _note_no_name(bytes(name[:40]))
    return found


@lru_cache(maxsize=256)
def _note_no_name(name: bytes) -> None:
    text = "%r among the actors or consumers is no name, and is left out"
    log.error(text, name, extra=about())


def _position(reply: Reply) -> StreamId:
    """Return a cursor's position; START, up to which nothing is trimmed, if it is none."""
    try:
        return START if reply is None else StreamId.parse(reply)
    except (DecodeError, TypeError):
        return START


def role_of(consumer: str) -> str:
    """Return what a consumer is; behind a colon its name says which one of these."""
    return consumer.partition(":")[0]


def consumers(channel: Channel, keys: StoreKeys) -> list[str]:
    """Return the names of all registered consumers."""
    return sorted(names_in(channel.call("SMEMBERS", keys.consumers)))


def cursors(channel: Channel, keys: StoreKeys, actor: str) -> dict[str, StreamId]:
    """Return up to which ID every registered consumer lets one actor's stream be trimmed."""
    names = consumers(channel, keys)
    replies = channel.exchange([("HGET", keys.cursor(name), actor) for name in names])
    return {name: _position(reply) for name, reply in zip(names, replies, strict=True)}


def applied(channel: Channel, keys: StoreKeys, actor: str) -> dict[str, StreamId]:
    """Return the last applied ID of every registered consumer for one actor."""
    names = consumers(channel, keys)
    commands = [("HGET", key(name), actor) for name in names for key in (keys.cursor, keys.applied)]
    replies = [_position(reply) for reply in channel.exchange(commands)]
    return {name: max(replies[2 * i : 2 * i + 2]) for i, name in enumerate(names)}


def trim_read(channel: Channel, keys: StoreKeys) -> int:
    """Remove what every consumer has read from all streams of a store; returns the entries.

    For a broker that is full: it still lets streams be trimmed.
    """
    removed = 0
    for actor in names_in(channel.call("SMEMBERS", keys.actors)):
        read = min(cursors(channel, keys, actor).values(), default=START)
        if read != START:
            removed += channel.call("XTRIM", keys.stream(actor), "MINID", str(read.next()))
    return removed


def forget_if_read(channel: Channel, keys: StoreKeys, actor: str) -> bool:
    """Empty the stream of an actor that said goodbye, if every consumer has read all of it.

    The stream itself stays for FENCE_MS: its newest ID keeps a zombie of the actor out. An
    actor that comes back at this very moment keeps its stream (WATCH).

    Raises:
        BrokerAuthFailed: this user may only read.
    """
    stream = keys.stream(actor)
    channel.call("WATCH", stream, keys.closed)
    positions = cursors(channel, keys, actor)
    newest = newest_id(channel, stream)
    gone = channel.call("SISMEMBER", keys.closed, actor)
    if not gone or not positions or any(position < newest for position in positions.values()):
        channel.call("UNWATCH")
        return False
    commands: list[Any] = [
        ("MULTI",),
        ("XTRIM", stream, "MAXLEN", 0),
        ("PEXPIRE", stream, FENCE_MS),
    ]
    commands += [("SREM", key, actor) for key in (keys.actors, keys.closed)]
    for name in positions:
        commands += [("HDEL", key(name), actor) for key in (keys.cursor, keys.applied)]
    return channel.checked(channel.exchange([*commands, ("EXEC",)]))[-1] is not None


def expire_if_read(channel: Channel, keys: StoreKeys, actor: str) -> None:
    """Let the stream of an actor that vanished end in a while, if every consumer has read it."""
    stream = keys.stream(actor)
    remaining_ms = channel.call("PTTL", stream)
    if remaining_ms == -2:  # it has ended: what is left of it goes with the next poll
        channel.call("SADD", keys.closed, actor)
    elif remaining_ms == -1:
        newest = newest_id(channel, stream)
        if all(position >= newest for position in cursors(channel, keys, actor).values()):
            channel.call("PEXPIRE", stream, ORPHAN_MS)


def tidied(channel: Channel, keys: StoreKeys, actor: str, has_left: bool) -> bool:
    """Tidy up after an actor that is gone, as far as this user may; True if it is forgotten."""
    try:
        if has_left:
            return forget_if_read(channel, keys, actor)
        expire_if_read(channel, keys, actor)
    except BrokerAuthFailed as error:
        if not error.is_forbidden:
            raise  # else a recorder, which only reads: a trainer tidies up
    return False
