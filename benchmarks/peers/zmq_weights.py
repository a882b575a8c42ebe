"""Networks over the earlier wire: PUB and SUB, with lz4 over pickle."""

import threading
import time

import zmq

from benchmarks import worker
from benchmarks.peers.arrivals import Arrivals, Networks
from benchmarks.peers.zmq_wire import pack, unpack

JOIN_S = 30.0


def trainer(port, nbytes):
    networks = Networks(nbytes)
    socket = zmq.Context.instance().socket(zmq.XPUB)  # a PUB that also tells of subscribers
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    socket.bind(f"tcp://127.0.0.1:{port}")

    def joined(actors):
        for _ in range(actors):
            if not socket.poll(JOIN_S * 1000):
                raise TimeoutError("an actor has not subscribed")
            socket.recv()

    def publish():
        version, tree = networks.next()
        start = time.monotonic_ns()
        socket.send(pack(tree))
        return [version, start, time.monotonic_ns()]

    worker.serve(joined=joined, publish=publish)


def actor(port):
    arrivals = Arrivals()
    socket = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"tcp://127.0.0.1:{port}")

    def receive():
        while True:
            arrivals(unpack(socket.recv()))

    threading.Thread(target=receive, daemon=True).start()
    worker.serve(arrived=arrivals.wait)


if __name__ == "__main__":
    worker.main(trainer=trainer, actor=actor)
