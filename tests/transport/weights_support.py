"""A trainer's and an actor's end of networks, as the tests drive them."""

import threading

import numpy as np
from transport_support import DEADLINE_S, Proxy, broker_at, wait_until

from agentlace.transport.weights import INLINE_BYTES
from agentlace.transport.weights_receiver import WeightsReceiver

LONG_S = DEADLINE_S
SMALL, LARGE = 10, INLINE_BYTES


def network(n, size=SMALL):
    """Return a network of which every number is n."""
    return {"actor": {"w": np.full(size, n, np.float32)}, "critic": (np.full(3, n), n)}


class Player:
    """A receiver that keeps the numbers of the networks it got, and checks that they are whole."""

    def __init__(self, broker, keys):
        self.got = []
        self.versions = []
        self.fails = False
        self.receiver = WeightsReceiver(broker, keys, self._take)

    def _take(self, tree):
        n = tree["critic"][1]
        np.testing.assert_array_equal(tree["actor"]["w"], n)
        tree["actor"]["w"][:] = -1  # it is the actor's own
        self.got.append(n)
        self.versions.append(self.receiver.version)
        if self.fails:
            raise RuntimeError("cannot use it")

    def has(self, n):
        wait_until(lambda: self.got and self.got[-1] == n, what=f"network {n}")
        assert self.got == sorted(set(self.got))
        assert self.versions == sorted(set(self.versions))
        return True


class SlowLink(Proxy):
    """A proxy that lets as many bytes through to the clients as it is told to."""

    def __init__(self, port):
        super().__init__(port)
        self._changed = threading.Condition()
        self._allowed = 0

    def let(self, nbytes):
        with self._changed:
            self._allowed += nbytes
            self._changed.notify_all()

    def open(self):
        self.let(1 << 40)

    def hold(self):
        with self._changed:
            self._allowed = 0

    @property
    def is_used_up(self):
        with self._changed:
            return not self._allowed

    @property
    def broker(self):
        """The broker behind it."""
        return broker_at(f"redis://127.0.0.1:{self.port}", over_tcp=True)

    def _downstream(self, client, data, generation, stop):
        while data:
            with self._changed:
                self._changed.wait_for(lambda: self._allowed, 0.02)
                taken = min(self._allowed, len(data))
                self._allowed -= taken
            if stop.is_set() or generation != self._generation:
                raise ConnectionAbortedError
            client.sendall(data[:taken])
            data = data[taken:]


def publish(publisher, n, size=SMALL):
    """Publish a network and wait until the broker has it."""
    publisher.publish(network(n, size))
    assert publisher.flush(LONG_S)


def leaf_keys(channel, keys):
    """Return the leaves' keys that are in the broker."""
    pattern = keys.weights.replace("{", "[{]") + ":*:*:*"
    return {bytes(key).decode() for key in channel.at(keys.prefix).call("KEYS", pattern)}
