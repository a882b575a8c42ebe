"""A ring of trajectories: what is in it, and how rows get in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace.codec.dtypes import dtype_of
from agentlace.data.columns import Array, Schema, leaves_of
from agentlace.data.episodes import Episodes, Trajectory
from agentlace.data.ring import blocks
from agentlace.data.sampled_store import Part, SampledStore
from agentlace.data.storage import make_storage
from agentlace.forks import freed_by_fork

END = "end_of_trajectory"


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


class TrajectoryRing(SampledStore):
    """The part of a :class:`~agentlace.data.trajectory_buffer.TrajectoryBuffer` that stores."""

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
        self._rng = np.random.Generator(np.random.PCG64(seed))
        freed_by_fork(self._rng.bit_generator.lock)  # which numpy holds while it draws

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
            columns = self._fitting(columns, ends)
            first = 0
            for last in np.flatnonzero(ends):
                self._append(columns, first, int(last) + 1)
                self._episodes.end()
                first = int(last) + 1
            self._append(columns, first, len(ends))
        self._announce()

    def _fitting(self, columns: dict[str, Array], ends: Array) -> dict[str, Array]:
        """Return the columns as they are stored; raises SchemaMismatch."""
        columns = {name: column for name, column in columns.items() if name != END}
        if END in self._schema.example:
            columns[END] = ends
        self._schema.check(columns)
        return columns

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

    def cut(self) -> Part:
        """Return the state of this moment, and the rows that may still be rolled back or end."""
        state = self._common_state()
        with self._writing:
            book = self._episodes
            return self._part(book.settled(), book.insert_idx, state)

    def export_rows(self, begin: int, nbytes: int, until: int | None = None) -> Part:
        """Return rows from a number on, about so many bytes; inserts wait meanwhile."""
        state = self._common_state()
        with self._writing:
            newest = self._episodes.insert_idx
            end = newest if until is None else min(newest, until)
            begin = min(max(begin, self._first_sampled()), end)
            end = min(end, begin + max(1, nbytes // max(1, self._schema.nbytes)))
            return self._part(begin, end, state)

    def _part(self, begin: int, end: int, state: dict[str, Any]) -> Part:
        book, first = self._episodes, self._first_sampled()
        begin = min(max(begin, first), end)
        state |= {"begin": first, "end": end, **book.restart_state(first, end)}
        columns = self._export(np.arange(begin, end)) if end > begin else None
        settled = min(end, book.settled())
        return Part(columns, begin, end, settled, book.insert_idx, state)

    def _first_sampled(self) -> int:
        return min(self._episodes.range[0], self._episodes.insert_idx)

    def _export(self, rows: Array) -> dict[str, Array]:
        columns = {k: np.asarray(self._storage.take(k, rows % self.capacity)) for k in self.dataset}
        columns[END] = self._episodes.is_last(rows)
        return columns

    def begin_restore(self, state: Mapping[str, Any]) -> None:
        """Let an empty buffer begin at the first row of a snapshot."""
        with self._writing:
            self._trajectory.min_length = state["min_length"]
            before = state["inserted"] - (state["end"] - state["begin"])
            self._episodes.begin_at(state["begin"], state["trajectory_id"], before)

    def absorb_rows(self, columns: Any, part: slice) -> None:
        """Insert a part of exported rows."""
        rows = {name: column[part] for name, column in columns.items()}
        self._insert_columns(rows, rows[END])


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(dtype)
        return found
    except TypeError:
        return dtype_of(dtype)  # one of ml_dtypes'
