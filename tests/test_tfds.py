"""Programs that record RLDS and read it back, as they were written for the earlier library.

They run under pytest and as a script: python tests/test_tfds.py
"""

import os
import tempfile

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from agentlace.data.data_store import QueuedDataStore
from agentlace.data.jaxrl_data_store import ReplayBufferDataStore, make_default_trajectory_buffer
from agentlace.data.rlds_writer import RLDSWriter
from agentlace.data.tfds import make_datastore, populate_datastore

EPISODES, STEPS = 10, 15


class DictEnv(gymnasium.Env):
    """An environment whose observation is a dict, and comes in wider dtypes than it declares."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)
    observation_space = spaces.Dict(
        {
            "position": spaces.Box(0, 10, (1,), np.int32),
            "velocity": spaces.Box(-1, 1, (1,), np.float32),
        }
    )

    def reset(self, **kwargs):
        position = np.random.randint(0, 10, size=(1,))
        return {"position": position, "velocity": np.random.uniform(-1, 1, size=(1,))}, {}


def record(env, folder, type):
    """Insert episodes into a store with a logger; returns all actions."""
    spec = {"observation": env.observation_space, "action": env.action_space}
    logger = RLDSWriter("recorded", spec, folder, "1.0.0", max_episodes_per_file=5)
    makes = {
        "replay_buffer": ReplayBufferDataStore,
        "trajectory_buffer": make_default_trajectory_buffer,
    }
    store = makes[type](env.observation_space, env.action_space, capacity=20, rlds_logger=logger)
    seen, actions = env.reset()[0], []
    for _ in range(EPISODES):
        for t in range(STEPS):
            actions.append(np.random.randn(*env.action_space.shape))
            sample = {
                "observations": seen,
                "next_observations": seen,
                "actions": actions[-1],
                "rewards": np.random.randn(),
                "masks": 1 - (t == STEPS - 1),
            }
            if type == "trajectory_buffer":
                sample["end_of_trajectory"] = False
            store.insert(sample)
    logger.close()
    return np.array(actions, np.float32)


def read_back(env, folder, type):
    actions = record(env, folder, type)
    files = os.listdir(folder)
    assert "dataset_info.json" in files and "features.json" in files

    numbers, others = [], set()

    def transform(data, metadata):
        numbers.append(metadata["step"])
        others.update(metadata)
        assert metadata["step_size"] == STEPS + 1
        return data

    store = make_datastore(folder, capacity=200, type=type, data_transform=transform)
    assert numbers == list(range(STEPS)) * EPISODES
    assert {"step", "step_size", "is_first", "discount"} <= others
    assert len(store) == STEPS * EPISODES

    queue = make_datastore(folder, capacity=200, type="queued_datastore")
    rows = queue.get_latest_data(-1)
    assert np.array_equal([row["actions"] for row in rows], actions)
    assert [row["masks"] for row in rows] == ([1.0] * (STEPS - 1) + [0.0]) * EPISODES
    assert populate_datastore(QueuedDataStore(9), []).latest_data_id() == -1


@pytest.mark.parametrize(
    ("make", "type"),
    [
        (DictEnv, "replay_buffer"),
        (DictEnv, "trajectory_buffer"),
        (lambda: gymnasium.make("Pendulum-v1"), "replay_buffer"),
        (lambda: gymnasium.make("Pendulum-v1"), "trajectory_buffer"),
    ],
)
def test_what_was_logged_is_read_back(make, type, tmp_path):
    read_back(make(), str(tmp_path / "log"), type)


if __name__ == "__main__":
    for make in (DictEnv, lambda: gymnasium.make("Pendulum-v1")):
        for type in ("replay_buffer", "trajectory_buffer"):
            with tempfile.TemporaryDirectory() as folder:
                read_back(make(), os.path.join(folder, "log"), type)
    print("[test_tfds] passed")
