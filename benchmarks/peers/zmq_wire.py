"""How the earlier library put things on the wire: ZeroMQ, with lz4 over pickle.

A baseline for comparison only: nothing else here unpickles what comes from a socket.
"""

import pickle

import lz4.frame
import zmq

TIMEOUT_MS = 60_000
"""So long a baseline waits for its other end; its only use is to end a broken run."""


def pack(value):
    return lz4.frame.compress(pickle.dumps(value))


def unpack(data):
    return pickle.loads(lz4.frame.decompress(data))


class Caller:
    """A REQ socket: one request, one reply."""

    def __init__(self, port):
        self._socket = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    def call(self, request):
        self._socket.send(pack(request))
        return unpack(self._socket.recv())


def answer(port, handle):
    """Answer requests one after the other, without end."""
    socket = zmq.Context.instance().socket(zmq.REP)
    socket.bind(f"tcp://127.0.0.1:{port}")
    while True:
        socket.send(pack(handle(unpack(socket.recv()))))
