"""An actor's and a consumer's end of transition streams, as the tests drive them."""

import contextlib
import threading

import numpy as np
from transport_support import DEADLINE_S, wait_until

from agentlace.errors import BrokerUnreachable, StoreFull
from agentlace.transport.consumer import Consumer
from agentlace.transport.producer import Producer
from agentlace.transport.streams import Retention

LONG_S = DEADLINE_S
STORE = "env"


def rows(start, stop, size=3):
    return [{"n": n, "observations": np.full(size, n, np.float32)} for n in range(start, stop)]


class Actor:
    """A producer with its connection, and with the presence that it has as a client."""

    def __init__(self, broker, keys, name="robot", retention=None):
        self.name = name
        self.retention = retention or Retention()
        self.channel = broker.channel()
        self.stores = 1
        args = (keys.store(STORE), name, lambda: self.retention, lambda: self.stores)
        self.producer = Producer(self.channel, *args)
        self._presence = keys.client(name)

    def announce(self):
        self.channel.call("SET", self._presence, "{}")

    def vanish(self):
        self.channel.call("DEL", self._presence)
        self.close()

    def close(self):
        """End without a goodbye."""
        self.producer._durability.stop()
        self.channel.close()

    def send(self, start, stop, timeout_s=LONG_S, size=3):
        self.producer.take(rows(start, stop, size), {})
        self.producer.flush(timeout_s)

    def flush_at_last(self):
        """Flush until it succeeds."""
        wait_until(self._flushed)

    def _flushed(self):
        with contextlib.suppress(BrokerUnreachable, StoreFull):
            self.producer.flush(1.0)
            return True


class Recorder:
    """A consumer that keeps the numbers of the rows it got, per actor."""

    def __init__(self, broker, keys, name="trainer", positions=None, **kwargs):
        self.rows = {}
        self.positions = {} if positions is None else positions
        self.wait = threading.Event()
        self.wait.set()
        args = (broker, keys, STORE, self._apply, name, self.positions)
        self.consumer = Consumer(*args, **kwargs)
        self.fails = False

    def _apply(self, actor, chunk, last):
        assert self.wait.wait(LONG_S)
        if self.fails:
            raise RuntimeError("no disk")
        found = self.rows.setdefault(actor, [])
        for row in chunk.rows():
            np.testing.assert_array_equal(row["observations"], row["n"])
            found.append(row["n"])
        assert len(chunk.rows()) == chunk.n

    def has(self, count, actor="robot"):
        wait_until(lambda: len(self.rows.get(actor, ())) >= count, what=f"{count} rows")
        assert self.rows[actor] == list(range(count))
        return True
