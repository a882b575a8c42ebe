"""Which server each channel has met, so that those that wait for one that is gone are woken."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from agentlace.transport.link import Address

if TYPE_CHECKING:
    from agentlace.transport.channel import Channel


class Encounters:
    """The servers that a broker's channels have met. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._met: dict[str, tuple[Address | None, bytes]] = {}

    def add(self, channel: Channel) -> None:
        """Take note of a channel that may have to be woken."""
        with self._lock:
            self._channels.add(channel)

    def note(self, channel: Channel, run: bytes, seen_s: float) -> None:
        """Wake channels that wait for a server in whose place there is another one now.

        Args:
            channel: a new connection.
            run: what tells this run of the server at its other end from all others.
            seen_s: when the server met before was last heard of, in monotonic time.
        """
        met, home = (channel.server, run), channel.home
        with self._lock:
            before = self._met.get(home, met)
            self._met[home] = met
            others = [] if before == met else list(self._channels)
        for other in others:
            is_left = other.home == home or other.server == before[0] == met[0]
            if is_left and other.is_connected and other.connected_s <= seen_s:
                other.interrupt()
