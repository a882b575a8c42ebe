"""What publish and subscribe are called at a broker."""

from __future__ import annotations

from typing import NamedTuple


class PubSub(NamedTuple):
    """Two commands, and what a message is called that they bring."""

    publish: str
    subscribe: str
    message: bytes


PLAIN = PubSub("PUBLISH", "SUBSCRIBE", b"message")
"""Every node of a cluster hears every message."""
SHARDED = PubSub("SPUBLISH", "SSUBSCRIBE", b"smessage")
"""Only those that have the channel's slot do; Redis 7 and later, Valkey."""
EVICTED = b"sunsubscribe"
"""Said to subscribers when their channel's slot has moved to another node."""
