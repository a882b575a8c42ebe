"""A ring of trajectories, sampled by configs: rows, sequences, futures, priorities."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace.codec.dtypes import dtype_of
from agentlace.data.columns import Array, Schema, leaves_of
from agentlace.data.draw import Sampler
from agentlace.data.episodes import Episodes, Trajectory
from agentlace.data.reading import Range, Reading, SampleConfig, Transform
from agentlace.data.ring import blocks, read_whole
from agentlace.data.sampled_store import SampledStore
from agentlace.data.storage import make_storage
from agentlace.data.trajectory_file import load_trajectories, save_trajectories


@dataclass
class DataShape:
    """What a buffer stores per row under one name.

    Attributes:
        name: ``a/b`` stands for the leaf ``b`` of a nested dict ``a``.
        shape: of one row.
        dtype: its name, or a numpy dtype.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: Any = "float32"


class TrajectoryBuffer(SampledStore):
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
        super().__init__(capacity)
        self._episodes = Episodes(capacity, min_trajectory_length)
        example = {s.name: np.zeros(s.shape, _dtype(s.dtype)) for s in data_shapes}
        self._schema = Schema(example)
        shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in example.items()}
        self._storage = make_storage(capacity, shapes, device, use_jax or device is not None)
        self._configs: dict[str, SampleConfig] = {}
        self._saved_priorities: dict[str, dict[str, Array]] = {}
        self._rng = np.random.Generator(np.random.PCG64(seed))

    @property
    def dataset(self) -> dict[str, Any]:
        """Return the storage: per name an array of shape (capacity, ...)."""
        arrays: dict[str, Any] = self._storage.arrays
        return arrays

    @property
    def metadata(self) -> dict[str, Array]:
        """Return per position to which trajectory the row belongs."""
        return self._episodes.metadata

    @property
    def inserted(self) -> int:
        """Return the number of rows that were ever inserted, also those rolled back."""
        return self._episodes.inserted

    @property
    def _insert_idx(self) -> int:
        return self._episodes.insert_idx

    @property
    def _sample_begin_idx(self) -> int:
        return self._episodes.range[0]

    @property
    def _sample_end_idx(self) -> int:
        return self._episodes.range[1]

    @property
    def _trajectory(self) -> Trajectory:
        return self._episodes.trajectory

    def __len__(self) -> int:
        """Return the number of rows that are there."""
        return len(self._episodes)

    # -- inserting ---------------------------------------------------------------------------------

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Insert one row.

        Args:
            data: a dict, nested where names have slashes; it is not changed.
            end_of_trajectory: whether it is the last of its trajectory. An entry of ``data``
                of this name, which need not be declared, counts instead.

        Raises:
            SchemaMismatch: it does not fit the declared shapes; nothing of it was stored.
        """
        row = dict(leaves_of(data))
        end = bool(row.get("end_of_trajectory", end_of_trajectory))
        self._insert_row(row, end)

    def _insert_row(self, row: dict[str, Any], end: bool) -> None:
        columns = {name: np.asarray(value)[None] for name, value in row.items()}
        self._insert_columns(columns, np.array([end]))

    def _insert_columns(self, columns: dict[str, Array], ends: Array) -> None:
        """Insert rows given as arrays by name, each ``n`` long, and which of them are last."""
        with self._writing:
            if "end_of_trajectory" in self._schema.example:
                columns = {**columns, "end_of_trajectory": ends}
            else:
                columns.pop("end_of_trajectory", None)
            self._schema.check(columns)
            first = 0
            for last in np.flatnonzero(ends):
                self._append(columns, first, int(last) + 1)
                self._episodes.end()
                first = int(last) + 1
            self._append(columns, first, len(ends))
        self._announce()

    def _append(self, columns: dict[str, Array], first: int, end: int) -> None:
        """Append rows to the trajectory in progress, in blocks that leave something to sample."""
        for start, stop in blocks(end - first, self.capacity):
            rows, n = slice(first + start, first + stop), stop - start
            at = self._episodes.claim(n)
            self._storage.write({name: column[rows] for name, column in columns.items()}, at, n)
            self._episodes.commit(n)

    def end_trajectory(self) -> None:
        """End the trajectory in progress; if it is too short, its rows are dropped."""
        with self._writing:
            self._episodes.end()

    # -- sampling ----------------------------------------------------------------------------------

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

    # -- keeping -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save rows, trajectories, sampling range, generator and priorities to an ``.npz`` file.

        The file is replaced as a whole. Inserts wait until it is written; samples do not.

        Args:
            path: of the file; ``.npz`` is added if it is missing.
        """
        priorities = {
            name: config.priority.state()
            for name, config in self._configs.items()
            if config.priority is not None
        }
        with self._drawing:
            rng = self._rng.bit_generator.state
        state = {"preloaded": self.preloaded, "rng": rng}
        with self._writing:
            save_trajectories(path, self._episodes, self.dataset, priorities, state)

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


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(dtype)
        return found
    except TypeError:
        return dtype_of(dtype)  # one of ml_dtypes'
