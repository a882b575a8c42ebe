"""Our actor, whose transitions go through the broker, and our trainer, whose store takes them."""

import time

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.data.data_store import QueuedDataStore
from agentlace.data.replay_buffer import ReplayBuffer
from benchmarks import payloads, worker

TIMEOUT_MS = 60_000
POLL_S = 0.001
STORE = "replay"


def _wait_for(store, total):
    """Return the time when the store has taken so many rows."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while store.latest_data_id() + 1 < total:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{store.latest_data_id() + 1} rows of {total} arrived")
        time.sleep(POLL_S)
    return time.monotonic_ns()


def trainer(capacity):
    server, store = None, None

    def begin():
        nonlocal server, store
        store = ReplayBuffer(capacity)
        server = TrainerServer(TrainerConfig())
        server.register_data_store(STORE, store)
        server.start(threaded=True)

    def applied(total):
        return _wait_for(store, total)

    def catch_up(total):
        """Start anew with an empty store; returns the seconds until it has all that is retained."""
        server.stop()
        start = time.monotonic_ns()
        begin()
        return (_wait_for(store, total) - start) / 1e9

    begin()
    worker.serve(applied=applied, catch_up=catch_up)


def actor(kind, pool):
    rows, store = payloads.ROWS[kind](pool), QueuedDataStore(pool)
    client = TrainerClient("actor", "localhost", TrainerConfig(), data_stores={STORE: store})
    client.timeout_ms = TIMEOUT_MS

    def update():
        if not client.update():
            raise client.last_error

    def send(n, every):
        start = time.monotonic_ns()
        for i in range(n):
            store.insert(rows[i % pool])
            if (i + 1) % every == 0:
                update()
        if n % every:
            update()
        return [start, time.monotonic_ns()]

    def updates(n, every):
        """Return the durations of updates of so many rows each, in microseconds."""
        durations = []
        for _ in range(n):
            store.batch_insert(rows[:every])
            durations += worker.sample_us(update, 1)
        return durations

    def flow():
        """Send one row after the other until the trainer has confirmed one; returns when."""
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        client.timeout_ms = 500
        while time.monotonic() < deadline:
            store.insert(rows[0])
            if client.update_datastore(STORE, -1, confirm_update=True):
                client.timeout_ms = TIMEOUT_MS
                return time.monotonic_ns()
            time.sleep(POLL_S)
        raise client.last_error

    worker.serve(send=send, updates=updates, flow=flow)


if __name__ == "__main__":
    worker.main(trainer=trainer, actor=actor)
