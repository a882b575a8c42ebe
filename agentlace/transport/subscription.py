"""A pub/sub subscription of which only the newest message counts."""

from __future__ import annotations

import time
from typing import NoReturn

from agentlace.errors import BrokerUnreachable
from agentlace.transport.connection import Broker
from agentlace.transport.pubsub import EVICTED, PLAIN

SILENCE_S = 5.0
"""After so long without a message the broker is asked whether it is still there."""


class Subscription:
    """Subscribes to one channel, and again whenever the connection was lost.

    For one thread; only :meth:`close` may be called from others.
    """

    def __init__(self, broker: Broker, name: str) -> None:
        self._channel = broker.channel(key=name)
        self._pubsub = PLAIN
        self._name = name
        self._connects = 0
        self._heard = 0.0
        self._has_asked = False
        self.was_renewed = False
        self.received = 0

    def newest(self) -> bytes | memoryview | None:
        """Return the newest message, waiting one slice for it; None if there was none.

        Older messages that wait as well are dropped. ``was_renewed`` tells whether this call
        subscribed: what was said before is then unknown, and state must be read again.

        Raises:
            BrokerUnreachable: the subscription was lost; the next call subscribes again.
            Closed: after :meth:`close`.
        """
        channel = self._channel
        channel.connect()
        self.was_renewed = channel.connects != self._connects
        if self.was_renewed:
            self._pubsub = channel.pubsub()
            channel.call(self._pubsub.subscribe, self._name)
            self._connects = channel.connects
            self._heard, self._has_asked = time.monotonic(), False
            return None
        newest, timeout_s = None, channel.slice_s
        while channel.wait(timeout_s):
            (message,) = channel.checked([channel.receive()])
            self._heard, self._has_asked = time.monotonic(), False
            kind = bytes(message[0])
            if kind == self._pubsub.message:
                newest, timeout_s = message[2], 0.0
                self.received += 1
            elif kind == EVICTED:
                self._lose(f"{self._name} has moved to another node")
        self._check_silence()
        return newest

    def _check_silence(self) -> None:
        """Notice a broker that vanished without a word: nothing else is ever sent to it."""
        silent_s = time.monotonic() - self._heard
        if silent_s > SILENCE_S and not self._has_asked:
            self._channel.send([("PING",)])
            self._has_asked = True
        elif silent_s > 2 * SILENCE_S:
            self._lose(f"no answer for {silent_s - SILENCE_S:.1f} s")

    def _lose(self, reason: str) -> NoReturn:
        self._channel.disconnect()
        self._channel.broker.doubt()
        raise BrokerUnreachable(str(self._channel.broker.url), reason)

    def close(self) -> None:
        """Wake the waiting thread and close."""
        self._channel.close()
