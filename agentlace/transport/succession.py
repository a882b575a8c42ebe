"""What a consumer that takes over from another finds missing.

A restored trainer may stand before what its predecessor let go: its checkpoint is an older one,
or the streams did not wait for it. What was trimmed between the two shows as a gap when an actor
sends more, but not if it never does; so it is looked for at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from agentlace.logs import about
from agentlace.transport.connection import Channel
from agentlace.transport.keys import StoreKeys
from agentlace.transport.streams import START, StreamId, newest_id

log = logging.getLogger(__name__)


def let_go(channel: Channel, keys: StoreKeys, names: Iterable[str]) -> dict[str, StreamId]:
    """Return up to which ID consumers let the stream of each actor be trimmed."""
    found: dict[str, StreamId] = {}
    for name in names:
        fields = channel.call("HGETALL", keys.cursor(name))
        for actor, position in zip(fields[::2], fields[1::2], strict=True):
            key = bytes(actor).decode()
            found[key] = max(found.get(key, START), StreamId.parse(position))
    return found


def pass_what_is_gone(
    channel: Channel,
    keys: StoreKeys,
    positions: dict[str, StreamId],
    trimmed: dict[str, StreamId],
) -> int:
    """Move positions over what is in no stream any more, and say so.

    Args:
        channel: of the consumer.
        keys: which store.
        positions: where the consumer stands; updated in place.
        trimmed: up to which ID its predecessors let the streams be trimmed.

    Returns:
        The number of transitions that are gone, as far as it is known.
    """
    gone = 0
    for actor in sorted({*positions, *trimmed}):
        mine = positions.get(actor, START)
        upto = _gone_until(channel, keys.stream(actor), mine, trimmed.get(actor, START))
        if upto <= mine:
            continue
        count = upto.number - (mine.number if mine.incarnation == upto.incarnation else 0)
        log.warning(
            "store %r: %d transitions of actor %r are lost: the store ends at %s, and what came "
            "until %s was let go before it was saved. Restore a newer checkpoint, or give "
            "TrainerServer a checkpoint=… for which the streams wait",
            keys.name,
            count,
            actor,
            mine,
            upto,
            extra=about(keys.labels, peer=actor),
        )
        positions[actor] = upto
        gone += count
    return gone


def _gone_until(channel: Channel, stream: str, mine: StreamId, trimmed: StreamId) -> StreamId:
    """Return up to which ID a stream has nothing after a position, though something was there."""
    reply = channel.call("XRANGE", stream, str(mine.next()), "+", "COUNT", 1)
    if not reply:
        return max(trimmed, newest_id(channel, stream))
    entry_id, fields = reply[0]
    entry, first = StreamId.parse(entry_id), int(bytes(fields[1]))
    # What is missing before a chunk of the same incarnation shows when that is read.
    return START if StreamId(entry.incarnation, first) <= trimmed else trimmed
