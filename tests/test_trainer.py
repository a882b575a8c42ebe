"""Programs of the trainer service as they were written for the earlier library.

They run under pytest and as a script, which needs no broker: python tests/test_trainer.py
"""

import time

import numpy as np
import pytest

from agentlace.data.data_store import QueuedDataStore
from agentlace.trainer import TrainerClient, TrainerConfig, TrainerServer

pytestmark = pytest.mark.usefixtures("broker_environment")


def comes_true(condition, timeout_s=5.0):
    """The trainer's store shows what update() has sent a moment later."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_trainer():
    config = TrainerConfig(port_number=5555, broadcast_port=5556, request_types=["get-stats"])
    told, networks = [], []

    def on_data(name, payload):
        told.append((name, len(payload["data"])))
        return {}

    server = TrainerServer(config, on_data, lambda type, payload: {"status": f"{type} works"})
    server.register_data_store("table1", first := QueuedDataStore(6))
    server.register_data_store("table2", second := QueuedDataStore(6))
    server.start(threaded=True)
    assert server.store_names() == {"table1", "table2"} and len(first) == 0

    mine, other = QueuedDataStore(3), QueuedDataStore(3)
    stores = {"table1": mine, "table2": other}
    client = TrainerClient("table1", "127.0.0.1", config, data_stores=stores)
    client.recv_network_callback(networks.append)

    mine.insert(np.array([1, 2, 3]))
    mine.insert(np.array([4, 5, 6]))
    assert client.update() and comes_true(lambda: len(first) == 2)
    mine.insert(np.array([7, 8, 9]))
    other.batch_insert([np.array([30, 31]), np.array([32, 33])])
    assert client.update() and comes_true(lambda: (len(first), len(second)) == (3, 2))
    assert [row.tolist() for row in first.get_latest_data(-1)] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert comes_true(lambda: sorted(told) == [("table1", 1), ("table1", 2), ("table2", 2)])

    assert client.request("get-stats", {}) == {"status": "get-stats works"}
    assert client.request("invalid", {}) is None

    client.start_async_update(interval=0.1)
    mine.insert(np.array([13, 14, 15]))
    assert comes_true(lambda: first.latest_data_id() == mine.latest_data_id())

    server.publish_network(np.array([100, 200, 300, 400]))
    assert comes_true(lambda: networks)
    assert networks[0].tolist() == [100, 200, 300, 400]
    client.stop()
    server.stop()


def test_timeouts_that_are_changed_while_it_runs():
    """Deadlines of a few milliseconds, as on a bad network: an update may fail, no row is lost."""
    config = TrainerConfig(port_number=5567, broadcast_port=5568)
    server = TrainerServer(config, lambda name, payload: {}, lambda type, payload: {})
    server.register_data_store("table1", first := QueuedDataStore(100_000))
    server.register_data_store("table2", second := QueuedDataStore(100_000))
    server.start(threaded=True)
    mine, other = QueuedDataStore(100_000), QueuedDataStore(100_000)
    stores = {"table1": mine, "table2": other}
    client = TrainerClient("table1", "127.0.0.1", config, data_stores=stores, timeout_ms=5)
    for i in range(1000):
        mine.insert(np.array([i] * 300))
        other.insert(np.array([i] * 100))
        if i % 100 == 99:
            client.update()
            assert len(first) <= len(mine) and len(second) <= len(other)
            client.req_rep_client.timeout_ms += 8
            client.req_rep_client.reset_socket()
    assert client.update()
    assert comes_true(lambda: (len(first), len(second)) == (1000, 1000))
    assert [row[0] for row in first.get_latest_data(-1)] == list(range(1000))
    client.stop()
    server.stop()


if __name__ == "__main__":
    test_trainer()
    test_timeouts_that_are_changed_while_it_runs()
    print("[test_trainer] passed")
