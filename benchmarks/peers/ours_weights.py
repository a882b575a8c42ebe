"""Our trainer that publishes networks, and our actors that receive them."""

import time

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from benchmarks import worker
from benchmarks.peers.arrivals import Arrivals, Networks


def _config(port):
    return TrainerConfig(port_number=port)


def trainer(nbytes, port=5555, frozen=0.0):
    networks = Networks(nbytes, frozen)
    server = TrainerServer(_config(port))
    server.start(threaded=True)

    def publish():
        version, tree = networks.next()
        start = time.monotonic_ns()
        server.publish_network(tree)
        return [version, start, time.monotonic_ns()]

    worker.serve(publish=publish)


def actor(port=5555):
    arrivals = Arrivals()
    client = TrainerClient("actor", "localhost", _config(port))
    client.recv_network_callback(arrivals)
    worker.serve(arrived=arrivals.wait)


if __name__ == "__main__":
    worker.main(trainer=trainer, actor=actor)
