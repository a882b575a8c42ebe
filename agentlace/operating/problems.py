"""What is wrong in a snapshot: why the system stalls, or soon will."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentlace.operating.peers import Peer
from agentlace.operating.snapshot import Snapshot
from agentlace.operating.stores import StoreState
from agentlace.transport.lag import ConsumerState
from agentlace.wording import seconds, size

LATE = "late"
"""The kind of problem of a node whose heartbeat does not come."""
NEARLY_FULL = 0.8
"""A stream, or the broker, is nearly full from this share of what it may have."""
STANDS_STILL_S = 5.0
"""A consumer that is behind and has applied nothing for so long does not get on."""
OLD_NETWORK_S = 10.0
"""An actor whose network is older than this, and not the last but one, does not get newer ones."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        kind: ``late``, ``gone``, ``broker full``, ``policy``, ``store full``, ``behind``,
            ``unknown store``, ``config``, ``version`` or ``old network``.
        where: which node or store, or ``broker``.
        text: for people.
        hint: what to do; may be empty.
    """

    kind: str
    where: str
    text: str
    hint: str = ""


def problems(snapshot: Snapshot) -> list[Problem]:
    """Return what is wrong, what stops most first."""
    found = list(_of_broker(snapshot))
    for peer in snapshot.peers:
        found += _of_peer(snapshot, peer)
    for store in snapshot.stores:
        found += _of_store(snapshot, store)
    for peer in snapshot.peers:
        found += _of_ends(snapshot, peer)
    return found


def called(peer: Peer) -> str:
    """Return how a node is called in messages."""
    return peer.service if peer.is_server else f"{peer.does} {peer.name}"


def _of_broker(snapshot: Snapshot) -> Iterator[Problem]:
    broker = snapshot.broker
    if broker.max_bytes and broker.used_bytes > NEARLY_FULL * broker.max_bytes:
        share = broker.used_bytes / broker.max_bytes
        text = f"its memory is {share:.0%} full, and then it refuses to take more"
        yield Problem("broker full", "broker", text, "raise maxmemory, or lower Retention(…)")
    if broker.policy not in ("", "noeviction"):
        text = f"it removes keys when it is full ({broker.policy}), which loses data unseen"
        yield Problem("policy", "broker", text, "CONFIG SET maxmemory-policy noeviction")


def _of_peer(snapshot: Snapshot, peer: Peer) -> Iterator[Problem]:
    place = f"{peer.host} pid {peer.pid}"
    if peer.is_late:
        text = f"no heartbeat for {seconds(peer.beat_s)}: it is stopped, stuck or cut off ({place})"
        yield Problem(LATE, called(peer), text)
    if peer.is_server and not peer.is_there and (left := _left_behind(snapshot, peer)):
        text = (
            f"gone since {seconds(peer.beat_s)} (was {place}), and {left} of its clients are there"
        )
        yield Problem("gone", called(peer), text, f"start the server of {peer.service}")


def _left_behind(snapshot: Snapshot, server: Peer) -> int:
    return sum(client.is_there for client in snapshot.clients(server.service))


def _of_store(snapshot: Snapshot, store: StoreState) -> Iterator[Problem]:
    where = f"store {store.name}"
    budget = budget_of(snapshot, store)
    unread = store.unread_bytes / max(store.nbytes, 1)  # what all have read makes room
    fullest = unread * max((stream.nbytes for stream in store.streams), default=0)
    if store.behind and fullest > NEARLY_FULL * budget / len(store.streams):
        does = "update() waits" if store.when_full == "block" else "the oldest are dropped"
        text = (
            f"{size(store.nbytes)} of {size(budget)} are used, then {does}; kept for "
            f"{_whose(store.consumers[0])}"
        )
        yield Problem("store full", where, text, _hint(store.consumers[0]))
    for consumer in store.consumers:
        if consumer.behind and _stands_still(consumer):
            yield Problem("behind", where, _whose(consumer), _hint(consumer))


def _stands_still(consumer: ConsumerState) -> bool:
    is_slow = consumer.progress_s is None or consumer.progress_s > STANDS_STILL_S
    return is_slow or not consumer.is_alive


def _whose(consumer: ConsumerState) -> str:
    place = f"{consumer.host} pid {consumer.pid}" if consumer.pid else "not seen for days"
    since = (
        "" if consumer.progress_s is None else f", no progress for {seconds(consumer.progress_s)}"
    )
    state = "" if consumer.is_alive else ", not alive"
    behind = f"{consumer.behind:,} transitions behind"
    return f"consumer {consumer.name}, {behind} ({place}{state}{since})"


def _hint(consumer: ConsumerState) -> str:
    if consumer.is_alive:
        return "its insert or data_callback is slow, or it saves too seldom"
    return f"start it, or, if it is gone for good: agentlace consumers forget {consumer.name}"


def budget_of(snapshot: Snapshot, store: StoreState) -> int:
    """Return what a store's streams may take, in bytes: its retention, or its share of memory."""
    trainer = snapshot.server(store.service)
    stores = max(len(trainer.stores) if trainer else 1, 1)
    limit = snapshot.broker.max_bytes // 2 // stores
    return min(store.budget_bytes, limit) if limit else store.budget_bytes


def _of_ends(snapshot: Snapshot, peer: Peer) -> Iterator[Problem]:
    """Tell where a client and its server do not fit together."""
    server = snapshot.server(peer.service)
    if peer.is_server or server is None or not (peer.is_there and server.is_there):
        return
    if peer.version and server.version and peer.version != server.version:
        text = f"agentlace {peer.version}, but {server.service} has {server.version}"
        yield Problem("version", called(peer), text, "install the same version on both machines")
    for name, mine in peer.config.items():
        if peer.does != "recorder" and name in server.config and server.config[name] != mine:
            text = f"{name} is {mine!r}, but {server.config[name]!r} at {server.service}"
            yield Problem("config", called(peer), text, "build both ends with the same config")
    for store in _stores_of(peer):
        if peer.does == "actor" and store not in server.stores:
            text = f"sends to store {store!r}, but {server.service} has {sorted(server.stores)}"
            yield Problem("unknown store", called(peer), text, "register_data_store() it there")
    yield from _of_network(peer, server)


def _stores_of(peer: Peer) -> list[str]:
    sent = (s.labels.get("store", "") for s in peer.samples if s.name == "transitions_sent_total")
    return sorted(set(sent))


def _of_network(peer: Peer, server: Peer) -> Iterator[Problem]:
    newest, mine = server.value("network_version"), peer.value("network_version")
    age_s = peer.value("network_age_seconds")
    if newest is None or mine is None or newest - mine < 2 or (age_s or 0.0) < OLD_NETWORK_S:
        return
    text = f"acts with network {mine:.0f} ({seconds(age_s)} old), the newest is {newest:.0f}"
    yield Problem("old network", called(peer), text)
