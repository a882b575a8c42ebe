"""Many actors that step at a fixed rate, and a trainer that notes how late their rows arrive."""

import time

import numpy as np

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.data.data_store import QueuedDataStore
from agentlace.data.replay_buffer import ReplayBuffer
from benchmarks import payloads, worker

STORE = "replay"
CAPACITY = 200_000
QUEUE_ROWS = 1_000


class _Noting(ReplayBuffer):
    """Notes each row's age when it is inserted, and when that was."""

    def __init__(self):
        super().__init__(CAPACITY)
        self.noted = []

    def insert_chunk(self, chunk):
        refusals = super().insert_chunk(chunk)
        now = time.monotonic()
        self.noted.append((now, (now - chunk.columns["sent_at"]).tolist()))
        return refusals


def trainer():
    store = _Noting()
    server = TrainerServer(TrainerConfig())
    server.register_data_store(STORE, store)
    server.start(threaded=True)

    def noted():
        """Return [time, ages in seconds] of every chunk since the last time."""
        taken, store.noted = store.noted, []
        return taken

    worker.serve(noted=noted)


def actors(count):
    """Step ``count`` actors in this process, one after the other."""
    row = payloads.cheetah_rows(1)[0]
    stores = [QueuedDataStore(QUEUE_ROWS) for _ in range(count)]
    clients = [
        TrainerClient("actor", "localhost", TrainerConfig(), data_stores={STORE: store})
        for store in stores
    ]

    def step(seconds, rate_hz):
        """Step all actors ``rate_hz`` times a second; returns steps made, and failed updates."""
        failed, start = 0, time.monotonic()
        steps = int(seconds * rate_hz)
        for number in range(steps):
            time.sleep(max(0.0, start + number / rate_hz - time.monotonic()))
            for store, client in zip(stores, clients, strict=True):
                store.insert({**row, "sent_at": np.float64(time.monotonic())})
                failed += not client.update()
        return [count * steps, failed, time.monotonic() - start]

    worker.serve(step=step)


if __name__ == "__main__":
    worker.main(trainer=trainer, actors=actors)
