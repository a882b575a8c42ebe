"""A program of the data stores as it was written for the earlier library.

Runs under pytest and as a script: python tests/test_data_store.py
"""

import numpy as np

from agentlace.data.data_store import QueuedDataStore
from agentlace.data.jaxrl_data_store import TrajectoryBufferDataStore
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.data.sampler import LatestSampler, SequenceSampler
from agentlace.data.trajectory_buffer import DataShape


def test_queued_data_store():
    store = QueuedDataStore(6)
    store.insert(1)
    store.insert(2)
    at_2 = store.latest_data_id()
    assert len(store) == 2 and store.get_latest_data(at_2) == []
    store.batch_insert([3, 4, 5, 6])
    at_6 = store.latest_data_id()
    store.batch_insert([7, 8, 9])
    assert len(store) == 6
    assert store.get_latest_data(at_2) == [4, 5, 6, 7, 8, 9]  # 3 has made room
    assert store.get_latest_data(at_6) == [7, 8, 9]
    store.batch_insert(list(range(10, 18)))
    assert list(store._data_queue) == list(range(12, 18))


def test_replay_buffer():
    buffer = ReplayBuffer(capacity=4)
    for i in range(6):
        buffer.insert({"observations": np.full(3, i, np.float32), "rewards": float(i)})
    assert len(buffer) == 4
    batch = buffer.sample(64)
    assert batch["observations"].shape == (64, 3)
    assert set(batch["rewards"]) == {2.0, 3.0, 4.0, 5.0}


def test_trajectory_buffer():
    store = TrajectoryBufferDataStore(
        capacity=100,
        data_shapes=[DataShape(name="data"), DataShape(name="index", dtype="int32")],
        min_trajectory_length=3,
    )
    store.register_sample_config(
        "window",
        {"index": LatestSampler(), "past": SequenceSampler(begin=-3, end=1, source="index")},
        (-1, 2),
    )
    for length in [10] * 10 + [8]:
        for i in range(length):
            store.insert({"data": np.float32(i), "index": i}, False)
        store.end_trajectory()
    assert store._sample_begin_idx == 10
    assert store._sample_end_idx == 108
    assert store._insert_idx == 108
    rows = np.arange(store._sample_begin_idx, store._sample_end_idx)
    data, mask = store.sample("window", 64, force_indices=rows)
    assert data["past"].shape == (98, 4)
    assert np.all(data["index"] > 0)  # the first row of a trajectory has none before it
    assert np.all(mask["past"].sum(axis=1) == np.minimum(data["index"] + 1, 4))


if __name__ == "__main__":
    test_queued_data_store()
    test_replay_buffer()
    test_trajectory_buffer()
    print("[test_data_store] passed")
