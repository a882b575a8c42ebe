"""The broker: its version, its memory, what fills it, and how far away it is."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agentlace.operating.asking import ask
from agentlace.transport.connection import Channel
from agentlace.transport.resp import ErrorReply

SAMPLED_KEYS = 2000
"""Of so many keys at most the size is asked."""
_LAST = re.compile(r"(:client|:reply|:stream|:weights|:cursor|:applied|:consumer|:synced):.*")


@dataclass(frozen=True)
class BrokerState:
    """A broker at one moment.

    Attributes:
        url: its address, without its password.
        version: such as ``valkey 9.0.1``; empty if this user may not ask.
        uptime_s: seconds since it was started.
        used_bytes: of its memory.
        max_bytes: its limit, 0 if it has none.
        policy: what it does when that is reached; should be ``noeviction``.
        clients: connections.
        round_trip_s: of a question, the shortest of three.
        clock_error_ms: bound of the error of the clock offset that was measured.
        keys_bytes: by pattern of key, such as ``stream:*``, its memory.
        info: everything that it says of itself, by name.
    """

    url: str
    version: str
    uptime_s: float
    used_bytes: int
    max_bytes: int
    policy: str
    clients: int
    round_trip_s: float
    clock_error_ms: float
    keys_bytes: dict[str, int] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict, repr=False)


def broker_state(channel: Channel, keys: Iterable[str] = ()) -> BrokerState:
    """Return how the broker stands.

    Args:
        channel: to it; of a cluster, this is about the node that it leads to.
        keys: of the namespace, whose memory is told by pattern.
    """
    trips = []
    for _ in range(3):
        began = time.perf_counter()
        channel.call("TIME")  # a broker that cannot write to its disk refuses a PING
        trips.append(time.perf_counter() - began)
    info = broker_info(channel)
    broker = channel.broker
    broker.measure_clock(channel)
    return BrokerState(
        *(str(broker.url), version_in(info)),
        float(info.get("uptime_in_seconds", 0)),
        *(int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))),
        info.get("maxmemory_policy", ""),
        int(info.get("connected_clients", 0)),
        *(min(trips), broker.clock_error_ms),
        _bytes_by_pattern(channel, list(keys)),
        info,
    )


def broker_info(channel: Channel) -> dict[str, str]:
    """Return what the broker says of itself, by name; empty if this user may not ask."""
    told = channel.exchange([("INFO",)])[0]
    text = "" if isinstance(told, ErrorReply) or told is None else bytes(told).decode()
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: value for name, value in pairs}


def version_in(info: dict[str, str]) -> str:
    """Return the server's name and version; empty if it is not told."""
    if "valkey_version" in info:
        return f"valkey {info['valkey_version']}"
    return f"redis {info['redis_version']}" if "redis_version" in info else ""


def pattern_of(key: str) -> str:
    """Return the kind of a key: without namespace, number, and names."""
    tag, _, rest = key.partition("}")
    kind = tag.rpartition("{")[2].split(":")[1:2]
    end = _LAST.sub(r"\1:*", rest).lstrip(":")
    return " ".join([*kind, end])


def _bytes_by_pattern(channel: Channel, keys: Sequence[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    sampled = keys[:SAMPLED_KEYS]
    for key, nbytes in zip(sampled, ask(channel, sampled, "MEMORY", "USAGE"), strict=True):
        if isinstance(nbytes, int):
            found[pattern_of(key)] += nbytes
    return dict(found.most_common())
