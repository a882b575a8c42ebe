"""What nodes say of themselves in their presence keys."""

from __future__ import annotations

import json
import time
from typing import Any

from agentlace.errors import DecodeError, PeerAbsent
from agentlace.transport.channel import Channel
from agentlace.transport.keys import ServiceKeys

Info = dict[str, Any]
MAX_NUMBER = 1 << 50
"""No process ID is larger, and no time in milliseconds for the next 30,000 years."""
PRESENT: Info = {"role": "node", "name": "?", "host": "?", "pid": 0, "token": "", "progress_ms": 0}
"""What every node says of itself."""
_TYPES: dict[str, type] = {name: type(value) for name, value in PRESENT.items()}
_TYPES |= {
    "machine": str,
    "started": str,
    "config": dict,
    "stores": dict,
    "control": dict,
    "began_ms": int,
}


def read_peer(channel: Channel, key: str) -> Info | None:
    """Return what the node with this presence key says of itself, None if it is not there.

    Raises:
        DecodeError: the key holds something else.
    """
    value = channel.call("GET", key)
    return None if value is None else peer_of(value, key)


def peer_of(value: Any, key: str) -> Info:
    """Return what a node says of itself in the value of its presence key; raises DecodeError."""
    try:
        return _checked(PRESENT | dict(json.loads(bytes(value))))
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)[:200]
        raise DecodeError(f"the presence key {key} is damaged: {reason}") from error


def _checked(told: Info) -> Info:
    """Return what a node says if it is of the right types; raises ValueError."""
    for name in _TYPES.keys() & told.keys():
        value, kind = told[name], _TYPES[name]
        if type(value) is not kind and not (name == "progress_ms" and type(value) is float):
            raise ValueError(f"{name} is a {type(value).__name__}")
        if isinstance(value, (int, float)) and not 0 <= value <= MAX_NUMBER:
            raise ValueError(f"{name} is {value!r:.50}")
    return told


def absent(channel: Channel, keys: ServiceKeys) -> PeerAbsent:
    """Return the error for a server that is not there, saying when it was."""
    seen = read_peer(channel, keys.seen)
    last = None
    if seen:
        last = f"{seen['host']} pid {seen['pid']}, {time.ctime(seen['progress_ms'] / 1000)}"
    return PeerAbsent("server", keys.name, last, str(channel.broker.url))
