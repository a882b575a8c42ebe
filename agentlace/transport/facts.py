"""What a broker says of itself: which one it is, what it writes to disk, how much it may hold."""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

from agentlace.transport.connection import Channel
from agentlace.transport.keys import StoreKeys
from agentlace.transport.resp import ErrorReply, Reply


class Facts(NamedTuple):
    """What a producer needs to know of a broker.

    Attributes:
        run: tells this run of the server's process from others; empty if this user may not ask.
        is_logged: whether it writes a log, so that it comes back with its data.
        maxmemory: its limit in bytes; 0 if it has none, or does not say.
        data: tells its data from that of a broker that came back empty; empty if unknown.
    """

    run: bytes
    is_logged: bool
    maxmemory: int
    data: bytes


def ask(channel: Channel, keys: StoreKeys) -> Facts:
    """Return the facts; what this user may not ask counts as not told.

    A broker without an identity is given one: one that comes back empty has another.
    """
    asked = [("INFO", section) for section in ("server", "persistence", "memory")]
    *told, found = channel.exchange([*asked, ("GET", keys.identity)])
    server, persistence, memory = map(_text, told)
    if found is None:
        new = ("SET", keys.identity, uuid.uuid4().hex, "NX")
        found = channel.exchange([new, ("GET", keys.identity)])[-1]
    limit = re.search(rb"maxmemory:(\d+)", memory)
    return Facts(
        _run(server),
        b"aof_enabled:1" in persistence,
        int(limit[1]) if limit else 0,
        _text(found),
    )


def run_of(channel: Channel) -> str:
    """Return what tells this run of the server from others; empty if this user may not ask."""
    return _run(_text(channel.exchange([("INFO", "server")])[0])).decode()


def _run(told: bytes) -> bytes:
    found = re.search(rb"run_id:(\w+)", told)
    return found[1] if found else b""


def replicas(channel: Channel) -> int | None:
    """Return how many replicas the server has; None if this user may not ask."""
    found = re.search(
        rb"connected_slaves:(\d+)", _text(channel.exchange([("INFO", "replication")])[0])
    )
    return int(found[1]) if found else None


def is_written(channel: Channel) -> bool:
    """Whether no write to the log's disk is under way, and none has failed."""
    told = _text(channel.exchange([("INFO", "persistence")])[0])
    return b"aof_pending_bio_fsync:0" in told and b"aof_last_write_status:ok" in told


def _text(reply: Reply) -> bytes:
    return b"" if reply is None or isinstance(reply, ErrorReply) else bytes(reply)
