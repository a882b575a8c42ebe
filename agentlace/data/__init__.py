"""Data stores: where transitions wait to be sent, and where they are sampled from.

::

    data_store.py             the contract, and the actor's queue
    replay_buffer.py          a ring buffer, sampled uniformly
    frame_buffer.py           the same, that stores each camera frame once
    trajectory_buffer.py      a ring of trajectories, sampled by configs
    sampler.py, n_step.py     what a sample of a trajectory buffer holds
    trajectory_data_store.py  the same, at either end of a stream
    jaxrl_data_store.py       stores whose shapes are given by Gymnasium spaces
    mixture.py                batches from several stores in fixed shares
    rate_limiter.py           when a store may be sampled
    prefetch.py, augment.py   sampling in the background, onto a device; random crops there
    snapshots.py              snapshots that write only what is new
    demos.py                  demonstrations from files, loaded in advance
    tfds.py, steps.py         stores filled from RLDS datasets, whose steps become transitions
    minari_format.py, lerobot_format.py    RLDS episodes in other formats
    own_files.py              how stores of other kinds take part in a trainer's checkpoint

    rlds_writer.py            records episodes in this process, as an RLDS dataset

    columns.py                trees of arrays with a leading dimension, and their schema
    ring.py                   writing rows while others read them
    sampled_store.py          what stores that can be sampled have in common
    trajectory_ring.py, trajectory_file.py, episodes.py, reading.py, storage.py
                              parts of the trajectory buffer
    draw.py, priority_sampler.py, sum_tree.py                  parts of the samplers
    frame_windows.py, frame_pool.py                            parts of the frame buffer
    packing.py                frames of both observations in one array
    transition_log.py         what is inserted, told to an rlds_logger
    ends.py                   where transitions tell that they are the last
    row_files.py              files of a store's rows, of which a save writes only the new ones
    archive.py                files that are either whole or not there
"""

from agentlace.data.data_store import DataStoreBase, QueuedDataStore
from agentlace.data.frame_buffer import FrameReplayBuffer
from agentlace.data.mixture import Mixture
from agentlace.data.prefetch import Prefetch
from agentlace.data.rate_limiter import RateLimiter
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.data.snapshots import Snapshots
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer

__all__ = [
    "DataShape",
    "DataStoreBase",
    "FrameReplayBuffer",
    "Mixture",
    "Prefetch",
    "QueuedDataStore",
    "RateLimiter",
    "ReplayBuffer",
    "Snapshots",
    "TrajectoryBuffer",
]
