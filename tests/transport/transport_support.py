"""Helpers of the transport's tests: waiting, a proxy that fails on demand, servers that lie."""

import contextlib
import socket
import threading
import time

import psutil
import pytest

from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker

DEADLINE_S = 20.0

once = pytest.mark.parametrize("any_broker_url", ["redis"], indirect=True)
"""For a test that brings its own broker: it need not run for each kind of broker."""


def wait_until(condition, timeout_s=DEADLINE_S, what="the condition"):
    """Return the condition's first true value; fail if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.005)
    return value


def broker_at(url, over_tcp=False):
    """Return the broker at an address; over TCP even if it has a Unix socket here."""
    broker = Broker(BrokerURL.parse(str(url)))
    broker._looked_for_socket |= over_tcp
    return broker


@contextlib.contextmanager
def channel_to(url, **kwargs):
    with contextlib.closing(broker_at(url).channel(**kwargs)) as channel:
        yield channel


def kill_clients(channel):
    """Cut every connection to the broker but the channel's own."""
    for kind in ("normal", "pubsub"):
        channel.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


class FakeServer:
    """A TCP server that does one thing with each connection. A context manager."""

    def __init__(self, handle):
        self._handle = handle
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._thread = threading.Thread(target=self._run)
        self._handlers = []
        self.port = self._listener.getsockname()[1]
        self.accepted = 0

    def _run(self):
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self.accepted += 1
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._handlers.append(thread)
                thread.start()

    def _serve(self, connection):
        connection.settimeout(0.05)
        with connection, contextlib.suppress(OSError):
            self._handle(connection, self._stop)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in (self._thread, *self._handlers):
            thread.join()
        self._listener.close()


class Proxy(FakeServer):
    """A TCP proxy in front of a broker, whose connections can be cut or held up.

    Attributes:
        flows: while it is not set, nothing is forwarded to the clients.
        accepts: while it is not set, new connections are closed at once.
    """

    def __init__(self, port):
        super().__init__(self._forward)
        self._upstream_port = port
        self._generation = 0
        self._left = None
        self.flows = threading.Event()
        self.accepts = threading.Event()
        self.flows.set()
        self.accepts.set()

    def cut(self):
        """Cut all connections."""
        self._generation += 1

    def cut_after(self, nbytes):
        """Forward so many more bytes to the clients, then cut."""
        self._left = nbytes

    def _forward(self, client, stop):
        if not self.accepts.is_set():
            return
        generation = self._generation
        with socket.create_connection(("127.0.0.1", self._upstream_port)) as upstream:
            upstream.settimeout(0.05)
            args = (client, upstream, generation, stop)
            thread = threading.Thread(target=self._upstream, args=args)
            thread.start()
            with contextlib.suppress(OSError):
                self._pump(upstream, client, generation, stop, self._downstream)
            for sock in (client, upstream):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _upstream(self, client, upstream, generation, stop):
        with contextlib.suppress(OSError):
            self._pump(client, upstream, generation, stop, upstream.sendall)
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)

    def _downstream(self, client, data, generation, stop):
        while not self.flows.wait(0.02):
            if stop.is_set() or generation != self._generation:
                raise ConnectionAbortedError
        if self._left is None:
            return client.sendall(data)
        data, self._left = data[: self._left], self._left - len(data)
        client.sendall(data)
        if self._left <= 0:
            self._left = None
            raise ConnectionAbortedError

    def _pump(self, source, target, generation, stop, send):
        while not stop.is_set() and generation == self._generation:
            with contextlib.suppress(TimeoutError):
                data = source.recv(1 << 16)
                if not data:
                    return
                if send == self._downstream:
                    send(target, data, generation, stop)
                else:
                    send(data)


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def brokers_on(port):
    """Return the server processes of a port, by what the kernel says of them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any("-server" in part for part in command) and any(f":{port}" in p for p in command):
            found.append(process.pid)
    return found
