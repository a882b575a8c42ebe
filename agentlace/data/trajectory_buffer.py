"""A ring of trajectories, sampled by configs: rows, sequences, futures, priorities."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.data.draw import Sampler
from agentlace.data.reading import Range, Reading, SampleConfig, Transform
from agentlace.data.ring import read_whole
from agentlace.data.sampled_store import Part
from agentlace.data.trajectory_file import load_trajectories, save_trajectories
from agentlace.data.trajectory_ring import DataShape, TrajectoryRing

__all__ = ["DataShape", "TrajectoryBuffer"]


class TrajectoryBuffer(TrajectoryRing):
    """The newest ``capacity`` rows of trajectories.

    A trajectory that ends with fewer than ``min_trajectory_length`` rows is rolled back. One
    that loses its beginning at the write head leaves the sampling range when it becomes
    shorter than that. The trajectory in progress may be sampled once it is long enough.
    Thread-safe: one thread inserts, others sample and do not wait for it.

    Args:
        capacity: in rows.
        data_shapes: what a row holds.
        seed: of the generator that samples.
        min_trajectory_length: in rows.
        device: a JAX device to keep the rows on, as JAX arrays; samples then are, too.
        use_jax: keep the rows in JAX arrays, on JAX's first CPU device if none is given.

    Attributes:
        metadata: per position, see :class:`~agentlace.data.episodes.Episodes`.
    """

    def __init__(
        self,
        capacity: int,
        data_shapes: Sequence[DataShape],
        seed: int = 0,
        min_trajectory_length: int = 2,
        device: Any = None,
        use_jax: bool = False,
    ) -> None:
        super().__init__(capacity, data_shapes, seed, min_trajectory_length, device, use_jax)
        self._configs: dict[str, SampleConfig] = {}
        self._saved_priorities: dict[str, dict[str, Array]] = {}

    def register_sample_config(
        self,
        name: str,
        samplers: Mapping[str, Sampler],
        sample_range: Range = (0, 1),
        transform: Transform | None = None,
    ) -> None:
        """Define a way to sample.

        Args:
            name: for :meth:`sample`.
            samplers: by the names under which the sample will have what they return.
            sample_range: (first, last + 1) of the rows around a drawn one, relative to it, that
                its trajectory must have: only such rows are drawn.
            transform: called with data and mask of the sample, returns what it is to be.

        Raises:
            ValueError: the range is empty or longer than the minimum trajectory, a sampler
                reads what is not stored, or there are two priority samplers.
        """
        length = sample_range[1] - sample_range[0]
        if not 0 < length <= self._trajectory.min_length:
            raise ValueError(
                f"sample_range={sample_range} must span 1 to {self._trajectory.min_length} rows, "
                "the minimum length of a trajectory"
            )
        for key, sampler in samplers.items():
            for source in sampler.sources(key):
                self._storage.names_of(source)
        config = SampleConfig(dict(samplers), sample_range, transform)
        if config.priority is not None and name in self._saved_priorities:
            config.priority.restore(self._saved_priorities.pop(name), self.capacity)
        self._configs[name] = config

    def sample(self, name: str, batch_size: int, force_indices: Any = None) -> tuple[Any, Any]:
        """Return a batch, drawn with replacement from the rows that fit the config's range.

        Args:
            name: of the config.
            batch_size: number of rows.
            force_indices: numbers of rows to return instead of drawn ones, int of shape (n,);
                those outside of the config's range are moved into it.

        Returns:
            (data, mask): dicts with what each sampler returns, or what the transform made of it.
            Arrays are new ones.

        Raises:
            ValueError: no such config, or no trajectory is long enough yet.
        """
        if name not in self._configs:
            known = ", ".join(self._configs) or "none"
            raise ValueError(f"no sample config {name!r}; there are: {known}")
        config = self._configs[name]
        begin, end = self._episodes.range
        if begin >= end:  # perhaps only since nearly the whole ring is just being written
            self._writing.acquire()
            self._writing.release()
        with self._drawing:
            self.sampled += batch_size
            reading = Reading(config, self._episodes, self._fetch, self._storage.put, self._rng)
            if force_indices is not None or not self._storage.reads_while_written:
                with self._writing:
                    batch = self._read_still(reading, batch_size, force_indices)
            else:
                batch = read_whole(
                    batch_size, reading.draw, reading.read, reading.is_torn, self._writing
                )
        return batch if config.transform is None else config.transform(*batch)

    def _read_still(self, reading: Reading, size: int, forced: Any) -> tuple[Any, Any]:
        if forced is None:
            return reading.read(reading.draw(size))
        return reading.read(reading.place(np.asarray(forced).astype(np.int64)), inside=False)

    def _fetch(self, source: str, rows: Array) -> Any:
        return self._storage.fetch(source, rows % self.capacity)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save rows, trajectories, sampling range, generator and priorities to an ``.npz`` file.

        The file is replaced as a whole. Inserts wait until it is written; samples do not.

        Args:
            path: of the file; ``.npz`` is added if it is missing.
        """
        priorities = self._priorities()
        with self._drawing:
            rng = self._rng.bit_generator.state
        state = {"preloaded": self.preloaded, "rng": rng}
        with self._writing:
            save_trajectories(path, self._episodes, self.dataset, priorities, state)

    def _priorities(self) -> dict[str, dict[str, Array]]:
        configs = [(n, c.priority) for n, c in self._configs.items() if c.priority is not None]
        return {name: priority.state() for name, priority in configs}

    def cut(self) -> Part:
        """Return the state of this moment, with the priorities of each config that has any."""
        return super().cut()._replace(arrays=self._priorities() or None)

    def absorb_arrays(self, arrays: Any) -> None:
        """Take over priorities; of configs that are not registered yet, as soon as they are."""
        for name, state in arrays.items():
            config = self._configs.get(name)
            if config is None or config.priority is None:
                self._saved_priorities[name] = state
            else:
                config.priority.restore(state, self.capacity)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: Any = None, use_jax: bool = False
    ) -> TrajectoryBuffer:
        """Return a buffer as it was saved. Its sample configs must be registered again.

        Args:
            path: of the file; ``.npz`` is added if it is missing.
            device: see :class:`TrajectoryBuffer`.
            use_jax: see :class:`TrajectoryBuffer`.

        Raises:
            FileNotFoundError: there is no such file.
            DecodeError: the file is damaged, or something else.
        """
        saved = load_trajectories(path)
        shapes = [DataShape(k, v.shape[1:], v.dtype) for k, v in saved.data.items()]
        buffer = cls(saved.episodes.capacity, shapes, device=device, use_jax=use_jax)
        buffer._storage.fill(saved.data, saved.rows)
        buffer._episodes = saved.episodes
        buffer._saved_priorities = saved.priorities
        buffer.preloaded = saved.state["preloaded"]
        buffer._rng.bit_generator.state = saved.state["rng"]
        return buffer
