"""Data stores whose shapes are given by Gymnasium spaces, with the keys that jaxrl agents use."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import leaves_of
from agentlace.data.data_store import Refusals
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.data.sampler import LatestSampler
from agentlace.data.trajectory_buffer import DataShape
from agentlace.data.trajectory_data_store import TrajectoryBufferDataStore
from agentlace.data.transition_log import TransitionLog

__all__ = ["ReplayBufferDataStore", "TrajectoryBufferDataStore", "make_default_trajectory_buffer"]


class ReplayBufferDataStore(ReplayBuffer):
    """A replay buffer for transitions of one environment.

    A transition is a dict with ``observations`` and ``next_observations`` (a nested dict for
    Dict spaces), ``actions``, ``rewards`` and ``masks`` (0 where the episode terminated, 1 else;
    float32 scalars). Further keys of the first transition, such as ``dones``, are stored too.

    Args:
        observation_space: a ``gymnasium.spaces`` Box, Discrete, MultiBinary, MultiDiscrete, or
            a Dict or Tuple of them.
        action_space: likewise.
        capacity: in transitions.
        rlds_logger: is told each transition, see
            :class:`~agentlace.data.transition_log.TransitionLog`; close it when all is inserted.
        seed: of the generator that samples.
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        capacity: int,
        rlds_logger: Any = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(capacity, seed=seed)
        self._log = None if rlds_logger is None else TransitionLog(rlds_logger)
        self._example = {
            "observations": example_of(observation_space),
            "next_observations": example_of(observation_space),
            "actions": example_of(action_space),
            "rewards": np.zeros((), np.float32),
            "masks": np.zeros((), np.float32),
        }

    def insert(self, data: Any) -> None:
        """Insert one transition.

        Raises:
            SchemaMismatch: it does not fit the store; nothing of it was stored.
        """
        super().insert(data)
        if self._log is not None:
            self._log.add(data)

    def insert_chunk(self, chunk: Chunk) -> Refusals:
        """Insert a chunk as :class:`ReplayBuffer` does."""
        if self._log is None:
            return super().insert_chunk(chunk)
        return self._log.add_chunk(chunk, super().insert_chunk)

    def _has_own_insert(self) -> bool:
        return type(self).insert is not ReplayBufferDataStore.insert

    def _schema_for(self, transition: Any) -> Any:
        if self._schema is None and isinstance(transition, dict):
            declared = {k: v for k, v in self._example.items() if k in transition}
            transition = {**transition, **declared}
        return super()._schema_for(transition)


def make_default_trajectory_buffer(
    observation_space: Any,
    action_space: Any,
    capacity: int,
    device: Any = None,
    rlds_logger: Any = None,
    seed: int = 0,
) -> TrajectoryBufferDataStore:
    """Return a trajectory buffer for transitions of one environment.

    A transition is as for :class:`ReplayBufferDataStore`. The sample config "training" returns
    ``observations``, ``next_observations``, ``actions``, ``rewards``, ``masks`` and
    ``end_of_trajectory`` of single transitions, also of the last ones of trajectories.

    Args:
        observation_space: see :class:`ReplayBufferDataStore`.
        action_space: see :class:`ReplayBufferDataStore`.
        capacity: in transitions.
        device: a JAX device to keep the transitions on, as JAX arrays; numpy if None.
        rlds_logger: is told each transition, see
            :class:`~agentlace.data.transition_log.TransitionLog`; close it when all is inserted.
        seed: of the generator that samples.
    """
    observation = example_of(observation_space)
    example = {
        "observations": observation,
        "next_observations": observation,
        "actions": example_of(action_space),
        "rewards": np.zeros((), np.float32),
        "masks": np.zeros((), np.float32),
        "end_of_trajectory": np.zeros((), np.bool_),
    }
    shapes = [DataShape(path, leaf.shape, leaf.dtype) for path, leaf in leaves_of(example)]
    store = TrajectoryBufferDataStore(capacity, shapes, device, seed, rlds_logger=rlds_logger)
    store.register_sample_config("training", {name: LatestSampler() for name in example})
    return store


def example_of(space: Any) -> Any:
    """Return zeros of a space's shape and dtype; a tree for Dict and Tuple spaces."""
    inner = getattr(space, "spaces", None)
    if isinstance(inner, dict):
        return {key: example_of(value) for key, value in inner.items()}
    if inner is not None:
        return tuple(example_of(value) for value in inner)
    if getattr(space, "shape", None) is None:
        raise TypeError(f"a {type(space).__name__} space has no fixed shape")
    return np.zeros(space.shape, space.dtype)
