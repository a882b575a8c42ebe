"""A TCP proxy in front of the broker that delays, loses and cuts what goes through it."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards between clients and the broker. A context manager.

    Attributes:
        delay_s: each piece is held back for so long, in either direction.
        loses: while it is set, what comes is read and thrown away; a connection that has lost
            something is cut when something comes after.
    """

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pairs = []
        self.port = self._listener.getsockname()[1]
        self.delay_s = 0.0
        self.loses = threading.Event()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=2.0)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._pairs.append((client, server))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source, sink):
        has_lost = False
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.delay_s:
                    threading.Event().wait(self.delay_s)
                if self.loses.is_set():
                    has_lost = True
                elif has_lost:
                    break
                else:
                    sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Cut all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for sock in (sock for pair in pairs for sock in pair):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.cut()


def wait_until(condition, what, timeout_s=60.0):
    """Return the condition's first true value; fail if there is none in time."""
    deadline = time.monotonic() + timeout_s
    never = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        never.wait(0.02)
    return value
