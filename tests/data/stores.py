"""Every store that can be sampled, each made for sealed transitions, and read in one way."""

import numpy as np

from agentlace.data.columns import leaves_of
from agentlace.data.frame_buffer import FrameReplayBuffer
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.data.sampler import LatestSampler
from agentlace.data.trajectory_buffer import DataShape
from agentlace.data.trajectory_data_store import TrajectoryBufferDataStore

from .support import checksum, sealed


def replay_buffer(capacity, **kwargs):
    return ReplayBuffer(capacity, **kwargs)


def frame_buffer(capacity, **kwargs):
    return FrameReplayBuffer(capacity, **kwargs)


def trajectory_store(capacity, **kwargs):
    shapes = [
        DataShape(path, np.shape(leaf), np.asarray(leaf).dtype)
        for path, leaf in leaves_of(sealed(0))
    ]
    store = TrajectoryBufferDataStore(capacity, shapes, **kwargs)
    store.register_sample_config("all", {name: LatestSampler() for name in sealed(0)})
    return store


def sample(store, size):
    """Return a sample's transitions, one by one."""
    batch = store.sample("all", size)[0] if hasattr(store, "metadata") else store.sample(size)
    actions = batch["actions"]
    if isinstance(actions, dict):  # a flat store knows tuples as dicts
        batch = {**batch, "actions": tuple(actions[key] for key in sorted(actions))}
    return [
        {
            **{key: batch[key][i] for key in ("rewards", "n", "seal")},
            **{
                part: {key: leaf[i] for key, leaf in batch[part].items()}
                for part in ("observations", "next_observations")
            },
            "actions": tuple(leaf[i] for leaf in batch["actions"]),
        }
        for i in range(size)
    ]


def torn(transitions):
    """Return the numbers of the transitions that are not whole."""
    return [int(t["n"]) for t in transitions if checksum(t) != t["seal"]]


STORES = [replay_buffer, trajectory_store, frame_buffer]
