"""What the broker says of the actors that are recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from agentlace.errors import BrokerAuthFailed
from agentlace.transport.connection import Channel, Refused
from agentlace.transport.keys import ServiceKeys, StoreKeys
from agentlace.transport.presence import read_peer
from agentlace.transport.resp import ErrorReply
from agentlace.transport.streams import START, Retention, StreamId, names_in, newest_id


class Seen(NamedTuple):
    """What the broker says of one actor of one store.

    Attributes:
        is_there: whether it keeps its presence key.
        has_left: whether it said goodbye.
        is_known: whether its stream is still listed.
        lag: numbers in its stream after the position that was asked about; 0 if there are none.
    """

    is_there: bool
    has_left: bool
    is_known: bool
    lag: int


def actors_of(channel: Channel, keys: StoreKeys) -> set[str]:
    """Return the actors whose streams are listed."""
    return set(names_in(channel.call("SMEMBERS", keys.actors)))


def look(
    channel: Channel, service: ServiceKeys, keys: StoreKeys, positions: Mapping[str, StreamId]
) -> dict[str, Seen]:
    """Return what the broker says of actors.

    Args:
        channel: to ask on.
        service: keys of their trainer.
        keys: of the store.
        positions: how far each actor's stream was read.
    """
    listed = actors_of(channel, keys)
    closed = set(names_in(channel.call("SMEMBERS", keys.closed)))
    actors = sorted(positions.keys() | listed)
    there = channel.exchange([("EXISTS", service.client(actor)) for actor in actors])
    lags = lags_of(channel, keys, {actor: positions.get(actor, START) for actor in actors})
    return {
        actor: Seen(
            not isinstance(exists, ErrorReply) and bool(exists),
            actor in closed,
            actor in listed,
            lags[actor],
        )
        for actor, exists in zip(actors, there, strict=True)
    }


def lags_of(channel: Channel, keys: StoreKeys, positions: Mapping[str, StreamId]) -> dict[str, int]:
    """Return how many numbers come after each actor's position, 0 if no entry does."""
    after = [
        ("XRANGE", keys.stream(actor), str(position.next()), "+", "COUNT", 1)
        for actor, position in positions.items()
    ]
    replies = channel.exchange(after)
    return {
        actor: 0 if isinstance(entry, ErrorReply) or not entry else _lag(channel, keys, actor, at)
        for (actor, at), entry in zip(positions.items(), replies, strict=True)
    }


def _lag(channel: Channel, keys: StoreKeys, actor: str, position: StreamId) -> int:
    newest = newest_id(channel, keys.stream(actor))
    before = position.number if newest.incarnation == position.incarnation else 0
    return max(newest.number - before, 1)


def share_bytes(channel: Channel, service: ServiceKeys, keys: StoreKeys) -> int:
    """Return what the broker keeps of each actor's stream of a store, as producers reckon it."""
    server = read_peer(channel, service.server)
    stores = (server or {}).get("stores", {})
    retention = Retention(**stores[keys.name]) if keys.name in stores else Retention()
    total, limit = retention.max_bytes, _maxmemory(channel) // 2
    if limit:  # all stores of the trainer share it
        total = min(total, limit // max(1, len(stores)))
    return total // max(1, int(channel.call("SCARD", keys.actors)))


def _maxmemory(channel: Channel) -> int:
    """Return the broker's limit of memory in bytes; 0 if there is none, or nobody may ask."""
    try:
        found = re.search(rb"maxmemory:(\d+)", bytes(channel.call("INFO", "memory")))
    except (BrokerAuthFailed, Refused):
        return 0
    return int(found[1]) if found else 0
