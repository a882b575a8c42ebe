"""An actor and a learner as programs, for tests that kill them.

fault_nodes.py actor NUMBER COUNT     inserts COUNT numbered transitions at 500 a second
fault_nodes.py learner FILE           writes every inserted transition's (actor, number)
"""

import logging
import sys
import threading

import numpy as np

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.data import DataStoreBase, QueuedDataStore

CONFIG = TrainerConfig(port_number=5570)
PERIOD_S = 0.02
PER_UPDATE = 10


class Record(DataStoreBase):
    """A store as users write them: insert and __len__ only."""

    def __init__(self, path):
        super().__init__(capacity=1)
        self._file = open(path, "w", buffering=1)
        self._length = 0

    def insert(self, data):
        self._length += 1
        self._file.write(f"{int(data['actor'])} {int(data['number'])}\n")

    def __len__(self):
        return self._length


def act(actor, count):
    queue = QueuedDataStore(count)
    client = TrainerClient(f"actor{actor}", "localhost", CONFIG, data_stores={"env": queue})
    pause = threading.Event()
    for number in range(count):
        queue.insert({"actor": actor, "number": number, "observations": np.full(17, number)})
        if number % PER_UPDATE == PER_UPDATE - 1:
            client.update()
            pause.wait(PERIOD_S)
    while not client.update():
        pause.wait(PERIOD_S)
    print("all sent", flush=True)
    sys.stdin.read()  # stay until told to go: an actor that leaves frees its stream
    client.stop()


def learn(path):
    server = TrainerServer(CONFIG)
    server.register_data_store("env", Record(path))
    server.start(threaded=True)
    print("learning", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if sys.argv[1] == "actor":
        act(int(sys.argv[2]), int(sys.argv[3]))
    else:
        learn(sys.argv[2])
