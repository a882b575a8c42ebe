"""The broker's clock, as seen from here: deadlines are in its time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentlace.transport.channel import Channel

SAMPLES = 5


class Clock:
    """The offset between a server's clock and this process's monotonic one.

    In a cluster each node has a clock of its own. The one that counts is that of the node that
    has the service's keys: both ends of a service talk to it.

    Attributes:
        is_measured: whether the offset is known.
        error_ms: how far off the offset may be, plus the drift since it was measured.
    """

    def __init__(self) -> None:
        self.is_measured = False
        self._offset_ms = 0.0
        self._server: object = None
        self.error_ms = 0.0

    def at_ms(self, moment_s: float) -> float:
        """Return the server's time in milliseconds since the epoch, at a monotonic time."""
        return moment_s * 1000 + self._offset_ms

    def measure(self, channel: Channel) -> None:
        """Measure the offset; the sample with the shortest round trip counts."""
        measured = []
        for _ in range(SAMPLES):
            before = time.monotonic() * 1000
            seconds, micros = channel.call("TIME")
            after = time.monotonic() * 1000
            middle = (before + after) / 2
            measured.append((after - before, int(seconds) * 1000 + int(micros) / 1000 - middle))
        round_trip_ms, self._offset_ms = min(measured)
        self.is_measured = True
        self.error_ms = round_trip_ms / 2
        self._server = channel.server

    def follow(self, channel: Channel) -> bool:
        """Measure the offset if the channel leads to another server; whether it did."""
        channel.connect()
        if self.is_measured and self._server == channel.server:
            return False
        self.measure(channel)
        return True
