"""How full the streams of each store are, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentlace.transport.connection import Channel
from agentlace.transport.keys import StoreKeys
from agentlace.transport.lag import ConsumerState, consumer_states, service_of
from agentlace.transport.resp import ErrorReply
from agentlace.transport.streams import START, Retention, StreamId, names_in


@dataclass(frozen=True)
class StreamState:
    """One actor's stream of one store.

    Attributes:
        actor: its identity.
        chunks: entries in the stream.
        nbytes: what it takes of the broker's memory, estimated by the broker.
        newest: position of its newest entry.
        has_left: whether its actor has said goodbye.
        oldest: position of its oldest entry.
    """

    actor: str
    chunks: int
    nbytes: int
    newest: StreamId
    has_left: bool
    oldest: StreamId = START

    @property
    def held(self) -> int:
        """About how many transitions are in it.

        What the oldest entry holds is not told: it counts as much as the others on average.
        """
        if self.chunks < 2 or self.oldest.incarnation != self.newest.incarnation:
            return self.newest.number if self.chunks else 0
        rows = self.newest.number - self.oldest.number
        return round(rows * self.chunks / (self.chunks - 1))


@dataclass(frozen=True)
class StoreState:
    """One store's streams.

    Attributes:
        service: the trainer, such as ``trainer:5555``.
        name: of the store.
        streams: one per actor.
        consumers: who reads them, the slowest first.
        budget_bytes: what all streams together may take; the default if no trainer is there.
        when_full: what happens then, ``block`` or ``drop_oldest``.
    """

    service: str
    name: str
    streams: tuple[StreamState, ...]
    consumers: tuple[ConsumerState, ...]
    budget_bytes: int
    when_full: str

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return sum(stream.nbytes for stream in self.streams)

    @property
    def behind(self) -> int:
        """Transitions that the slowest consumer has not applied yet; 0 without consumers."""
        return max((consumer.behind for consumer in self.consumers), default=0)

    @property
    def unread_bytes(self) -> float:
        """About how many bytes the slowest consumer has not applied; all without consumers.

        What everybody has read stays in the streams until its room is needed.
        """
        held = sum(stream.held for stream in self.streams)
        if not held:
            return 0.0
        return self.nbytes * (min(1.0, self.behind / held) if self.consumers else 1.0)


def store_state(channel: Channel, keys: StoreKeys, told: Any) -> StoreState:
    """Return how a store stands.

    Args:
        channel: to the broker.
        keys: the store's.
        told: what its trainer says of the store's retention; None if it does not.
    """
    channel = channel.at(keys.prefix)
    members = [("SMEMBERS", keys.actors), ("SMEMBERS", keys.closed)]
    actors, closed = map(names_in, channel.checked(channel.exchange(members)))
    retention = Retention.of_info(told)
    return StoreState(
        *(service_of(keys), keys.name),
        tuple(_stream(channel, keys, actor, actor in closed) for actor in sorted(actors)),
        tuple(consumer_states(channel, keys)),
        *(retention.max_bytes, retention.when_full),
    )


def _stream(channel: Channel, keys: StoreKeys, actor: str, has_left: bool) -> StreamState:
    key = keys.stream(actor)
    info, nbytes = channel.exchange([("XINFO", "STREAM", key), ("MEMORY", "USAGE", key)])
    if isinstance(info, ErrorReply) or not info:  # no stream yet, or none any more
        return StreamState(actor, 0, 0, StreamId(0, 0), has_left)
    fields = dict(zip(info[::2], info[1::2], strict=True))
    used = nbytes if isinstance(nbytes, int) else 0
    newest, first = StreamId.parse(fields[b"last-generated-id"]), fields[b"first-entry"]
    oldest = StreamId.parse(first[0]) if first else newest
    return StreamState(actor, int(fields[b"length"]), used, newest, has_left, oldest)
