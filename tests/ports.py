"""Free ports for the servers of the tests, of which each worker of a parallel run has its own."""

import contextlib
import os
import random
import socket

PORTS = range(10_000, 20_000)
"""Below those that the kernel gives to outgoing connections and to port 0: while a server is down,
one of its own clients, or another worker's server, could be given its port."""
BUS_OFFSET = 10_000
"""From a cluster node's port to that of its bus."""


def _shuffled():
    """Yield this worker's ports, again only when all have been used."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = list(PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))])
    random.SystemRandom().shuffle(own)  # which no test seeds
    while True:
        yield from own


_ports = _shuffled()


def free_port(needs_bus=False):
    """Return a free port; with ``needs_bus``, one whose cluster bus has a free one too."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", port))
            if needs_bus:
                bus.bind(("127.0.0.1", port + BUS_OFFSET))
            return port
