"""Looking again and again, for rates."""

from __future__ import annotations

import threading
from collections import deque

from agentlace.operating.report import Report, report
from agentlace.operating.snapshot import Snapshot, take
from agentlace.transport.connection import Channel

APART_S = 1.2
"""Two snapshots are at least so far apart: each node beats once a second."""
KEPT = 64


class Looker:
    """Reports how the system stands, each time compared with a second or more before.

    Args:
        channel: as for :func:`take`.
        namespace: which of the broker's.
    """

    def __init__(self, channel: Channel, namespace: str) -> None:
        self._channel = channel
        self._namespace = namespace
        self._before: deque[Snapshot] = deque(maxlen=KEPT)
        self._never = threading.Event()

    def report(self) -> Report:
        """Return how the system stands; the first time this takes APART_S.

        Raises:
            BrokerUnreachable: the broker is away.
            BrokerAuthFailed: this user may not read what is needed.
        """
        if not self._before:
            self._before.append(take(self._channel, self._namespace))
            self._never.wait(APART_S)
        now = take(self._channel, self._namespace)
        while len(self._before) > 1 and _seconds(self._before[1], now) >= APART_S:
            self._before.popleft()
        self._before.append(now)
        return report(self._before[0], now)


def _seconds(before: Snapshot, after: Snapshot) -> float:
    return (after.at_ms - before.at_ms) / 1000
