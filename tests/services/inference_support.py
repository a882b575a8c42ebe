"""Helpers of the inference tests: a function that can be held, and calls of many clients."""

import contextlib
import threading

from agentlace import InferenceClient, InferenceServer

from .support import DEADLINE_S, InThread, wait_until

PORT = 7100
TIMEOUT_MS = 1000 * DEADLINE_S


class Function:
    """An interface's function: keeps what it was called with, and waits while it is held."""

    def __init__(self, answer):
        self.calls = []
        self._answer = answer
        self._free = threading.Event()
        self._free.set()

    def __call__(self, payload):
        self.calls.append(payload)
        assert self._free.wait(DEADLINE_S)
        return self._answer(payload)

    @contextlib.contextmanager
    def held(self, call):
        """Hold it in a call that is made now, which ends well when this is over."""
        self._free.clear()
        before = len(self.calls)
        plug = InThread(call)
        wait_until(lambda: len(self.calls) > before, what="the held call")
        try:
            yield
        finally:
            self._free.set()
        plug.result()


class Room:
    """A server and its clients, all of which end with the test."""

    def __init__(self, url, running):
        self.url = url
        self._running = running

    def server(self, name, function, **settings):
        server = self._running(InferenceServer(PORT, broker=self.url))
        server.register_interface(name, function, **settings)
        server.start(threaded=True)
        return server

    def client(self, strict=True, timeout_ms=TIMEOUT_MS):
        return self._running(
            InferenceClient("x", PORT, broker=self.url, timeout_ms=timeout_ms, strict=strict)
        )

    def in_thread(self, call):
        return InThread(call)

    def line(self, client):
        return self._running(contextlib.closing(client.line()))

    def calls(self, lines, name, payloads, timeout_s=DEADLINE_S):
        """Make one call on each line, all at once."""
        return [
            InThread(lambda line=line, p=payload: line.call("call", name, p, timeout_s))
            for line, payload in zip(lines, payloads, strict=True)
        ]


def waiting(server):
    """Return how many calls wait in a server."""
    return len(server._engine.desk.queue)
