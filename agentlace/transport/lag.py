"""How far behind the registered consumers of the streams are, and who they are.

What a registered consumer has not read is kept, so one that stands still fills its store's
retention. It is named in the producers' messages and can be forgotten if it is gone for good.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentlace.transport.connection import Channel
from agentlace.transport.keys import LEASE_MS, SEEN_MS, ServiceKeys, StoreKeys
from agentlace.transport.presence import read_peer
from agentlace.transport.streams import START, StreamId, applied, consumers, names_in, newest_id

SCAN_COUNT = 1000


@dataclass(frozen=True)
class ConsumerState:
    """One registered consumer of one store.

    Attributes:
        service: the trainer service, such as ``trainer:5555``.
        store: name of the store.
        name: of the consumer.
        host: where it runs, or ran; ``?`` if that is not known any more.
        pid: its process there; 0 if that is not known any more.
        behind: transitions that it has not applied yet, of all actors together.
        progress_s: seconds since it last applied something, None if unknown.
        seen_s: seconds since it last said that it is there, None if unknown.
    """

    service: str
    store: str
    name: str
    host: str
    pid: int
    behind: int
    progress_s: float | None
    seen_s: float | None

    @property
    def is_alive(self) -> bool:
        """Whether it was there within the last seconds; one that is stopped or stuck is not."""
        return self.seen_s is not None and 1000 * self.seen_s < LEASE_MS


def stores(channel: Channel, namespace: str, store: str | None = None) -> list[StoreKeys]:
    """Return the keys of all stores of a namespace that have consumers, or of those of a name."""
    found = keys_of(channel, namespace, "}:consumers")
    ours = [store_keys(key, namespace) for key in found]
    return [keys for keys in ours if keys is not None and store in (None, keys.name)]


def keys_of(channel: Channel, namespace: str, ending: str = "") -> list[str]:
    """Return all keys of a namespace that end like this, sorted."""
    pattern = f"al:{{{_escaped(namespace)}:*{ending}"
    return sorted({key for each in channel.everywhere() for key in _scanned(each, pattern)})


def namespaces(channel: Channel) -> list[str]:
    """Return the namespaces in which a server is, sorted."""
    found = {key for each in channel.everywhere() for key in _scanned(each, "al:{*}:server")}
    return sorted({key.removeprefix("al:{").partition(":")[0] for key in found})


def _scanned(channel: Channel, pattern: str) -> Iterator[str]:
    cursor = b"0"
    while True:
        scan = ("SCAN", bytes(cursor), "MATCH", pattern, "COUNT", SCAN_COUNT)
        cursor, keys = channel.call(*scan)
        yield from names_in(keys)
        if bytes(cursor) == b"0":
            return


def _escaped(text: str) -> str:
    return re.sub(r"([\\*?\[\]^-])", r"\\\1", text)


def store_keys(key: str, namespace: str) -> StoreKeys | None:
    """Return the keys of the store whose set of consumers or actors this is; None for others."""
    tag, _, end = key.removeprefix("al:{").removeprefix(f"{namespace}:").rpartition("}:")
    kind, port, name = [*tag.split(":", 2), "", ""][:3]
    if not (port.isdecimal() and name and end in ("actors", "consumers")):
        return None
    return ServiceKeys(namespace, kind, int(port)).store(name)


def service_of(keys: StoreKeys) -> str:
    """Return how the service of a store is called in messages."""
    kind, port = keys.prefix[:-1].removesuffix(f":{keys.name}").split(":")[-2:]
    return f"{kind}:{port}"


def consumer_states(channel: Channel, keys: StoreKeys) -> list[ConsumerState]:
    """Return the registered consumers of a store, the slowest first.

    Reads, where a consumer is behind an actor that was restarted, the last chunk of each of its
    lives since.
    """
    actors = names_in(channel.call("SMEMBERS", keys.actors))
    newest = {actor: newest_id(channel, keys.stream(actor)) for actor in actors}
    states = [_state(channel, keys, name, newest) for name in consumers(channel, keys)]
    return sorted(states, key=lambda state: (-state.behind, state.name))


def _state(
    channel: Channel, keys: StoreKeys, name: str, newest: dict[str, StreamId]
) -> ConsumerState:
    behind = 0
    for actor, end in newest.items():
        position = applied(channel, keys, actor).get(name, START)
        behind += _rows_between(channel, keys.stream(actor), position, end)
    info, seen_s = _seen(channel, keys, name)
    now_ms = channel.broker.now_ms()
    progress_s = (now_ms - info["progress_ms"]) / 1000 if info else None
    host, pid = (info["host"], info["pid"]) if info else ("?", 0)
    return ConsumerState(service_of(keys), keys.name, name, host, pid, behind, progress_s, seen_s)


def _rows_between(channel: Channel, stream: str, position: StreamId, end: StreamId) -> int:
    """Return how many transitions come after a position, those that were dropped included."""
    rows = 0
    while end.incarnation > position.incarnation:
        rows += end.number
        before = channel.call("XREVRANGE", stream, f"({end.incarnation}-0", "-", "COUNT", 1)
        if not before:
            return rows
        end = StreamId.parse(before[0][0])
    is_same = end.incarnation == position.incarnation
    return rows + max(end.number - position.number, 0) * is_same


def _seen(
    channel: Channel, keys: StoreKeys, name: str
) -> tuple[dict[str, Any] | None, float | None]:
    """Return what a consumer said of itself, and how many seconds ago it last did."""
    info = read_peer(channel, keys.consumer(name))
    remaining_ms = channel.call("PTTL", keys.consumer(name))
    return info, (SEEN_MS - remaining_ms) / 1000 if info and remaining_ms >= 0 else None


def described(channel: Channel, keys: StoreKeys, name: str) -> str:
    """Return how a consumer is called in messages: its name, where it runs, since when silent."""
    info, seen_s = _seen(channel, keys, name)
    if info is None:
        return f"consumer {name!r} (not seen for days)"
    silent = "alive" if 1000 * (seen_s or 0) < LEASE_MS else f"last seen {seen_s:.0f} s ago"
    return f"consumer {name!r} (host {info['host']}, pid {info['pid']}, {silent})"


def forget(channel: Channel, keys: StoreKeys, name: str) -> bool:
    """Take a consumer off the list: what only it has not read is kept no longer.

    One that is alive registers again within seconds, and has lost nothing if nothing was trimmed
    meanwhile. Returns False if there is none of this name.
    """
    commands = [
        ("SREM", keys.consumers, name),
        ("DEL", keys.cursor(name), keys.applied(name), keys.consumer(name)),
    ]
    removed, _ = channel.checked(channel.exchange(commands))
    return bool(removed)
