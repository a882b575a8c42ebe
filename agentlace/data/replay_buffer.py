"""A replay buffer: a ring of transitions over numpy, sampled uniformly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import Array, Schema, as_transition, leaves_of, map_leaves
from agentlace.data.data_store import Refusals, Taken, insert_each
from agentlace.data.packing import pack_frames
from agentlace.data.ring import Head, blocks, read_whole, take_all, write_rows
from agentlace.data.sampled_store import Part, SampledStore
from agentlace.forks import freed_by_fork


class ReplayBuffer(SampledStore):
    """The newest ``capacity`` transitions. Thread-safe: inserts and samples do not wait.

    Shapes and dtypes are learned from the first transition, unless ``example`` gives them.
    A transition is a tree of dicts and tuples with arrays and numbers at the leaves, or a tuple
    as ``env.step`` returns it.

    Args:
        capacity: in transitions.
        example: a transition, of which only shapes and dtypes count.
        seed: of the generator that samples.
    """

    def __init__(self, capacity: int, example: Any = None, seed: int | None = None) -> None:
        super().__init__(capacity)
        self._rng = np.random.default_rng(seed)
        freed_by_fork(self._rng.bit_generator.lock)  # which numpy holds while it draws
        self._schema = None if example is None else Schema(example)
        self._head = Head(capacity)
        self.dataset: Any = None if self._schema is None else self._allocate(self._schema)

    def __len__(self) -> int:
        """Return the number of transitions that can be sampled."""
        return min(self._head.written - self._head.first, self.capacity)

    @property
    def inserted(self) -> int:
        """Return the number of transitions ever inserted."""
        return self._head.written

    def insert(self, data: Any) -> None:
        """Insert one transition.

        Raises:
            SchemaMismatch: it does not fit the store; nothing of it was stored.
        """
        with self._writing:
            data = as_transition(data)
            schema = self._schema_for(data)
            self._check(schema, data, 0)
            self._write_row(data)
        self._announce()

    def batch_insert(self, batch_data: Sequence[Any]) -> None:
        """Insert several transitions, oldest first.

        Raises:
            SchemaMismatch: the first that does not fit the store; the others were inserted.
        """
        for error in insert_each(self.insert, batch_data).values():
            raise error

    def insert_chunk(self, chunk: Chunk) -> Refusals:
        """Insert a chunk as it came from the stream: columns in one go, rows one by one.

        Returns:
            The rows that do not fit the store, by number; the others were inserted.

        Raises:
            SchemaMismatch: its columns do not fit the store; nothing of it was stored.
        """
        rows_only = chunk.columns is None or isinstance(chunk.columns, tuple)
        if rows_only or self._has_own_insert():
            return insert_each(self.insert, chunk.rows())
        self.insert_columns(chunk.columns, chunk.n)
        return {}

    def _has_own_insert(self) -> bool:
        """Whether a user's subclass wants to see each transition."""
        return type(self).insert is not ReplayBuffer.insert

    def insert_columns(self, columns: Any, n: int) -> None:
        """Insert ``n`` transitions given as a tree of arrays with leading dimension ``n``.

        Raises:
            SchemaMismatch: they do not fit the store; nothing was stored.
        """
        with self._writing:
            schema = self._schema or self._schema_for(map_leaves(lambda a: a[0], columns))
            self._check(schema, columns, 1)
            for start, end in blocks(n, self.capacity):
                part = slice(start, end)
                whole = end - start == n
                block = columns if whole else map_leaves(lambda a, part=part: a[part], columns)
                self._write(block)
        self._announce()

    def _check(self, schema: Schema, columns: Any, lead: int) -> None:
        schema.check(columns, lead)

    def _write_row(self, transition: Any) -> None:
        at = self._head.claim(1)

        def put(storage: Array, value: Any) -> None:
            storage[at] = value

        map_leaves(put, self.dataset, transition)
        self._head.commit()

    def _write(self, columns: Any) -> None:
        at = self._head.claim(len(next(leaf for _, leaf in leaves_of(columns))))
        self._write_columns(columns, at)
        self._head.commit()

    def _write_columns(self, columns: Any, at: int) -> None:
        map_leaves(lambda storage, values: write_rows(storage, values, at), self.dataset, columns)

    def _schema_for(self, transition: Any) -> Schema:
        if self._schema is None:
            schema = Schema(transition)
            self.dataset = self._allocate(schema)
            self._schema = schema
        return self._schema

    def _allocate(self, schema: Schema) -> Any:
        return schema.allocate(self.capacity)

    def sample(
        self,
        batch_size: int,
        keys: Sequence[str] | None = None,
        indx: Array | None = None,
        pack_obs_and_next_obs: bool = False,
    ) -> Any:
        """Return a batch, uniform with replacement.

        Args:
            batch_size: number of transitions.
            keys: top-level keys to return, all if None.
            indx: positions in the ring to return instead of random ones, int array.
            pack_obs_and_next_obs: join stacked frames of both, see
                :func:`~agentlace.data.packing.pack_frames`.

        Returns:
            The transition's tree, each leaf a new array with leading dimension ``batch_size``.

        Raises:
            ValueError: the buffer is empty.
        """
        batch = self._sample(batch_size, keys, indx)
        return pack_frames(batch) if pack_obs_and_next_obs else batch

    def _sample(self, size: int, keys: Sequence[str] | None, indx: Array | None, *how: Any) -> Any:
        if len(self) == 0:
            raise ValueError("cannot sample: the replay buffer is empty")

        def read(rows: Array) -> Any:
            return self._read(rows, keys, *how)

        if indx is not None:
            with self._writing:
                return read(np.asarray(indx))
        return read_whole(size, self._draw, read, self._head.is_torn, self._writing)

    def _read(self, rows: Array, keys: Sequence[str] | None) -> Any:
        positions = rows % self.capacity
        dataset = self.dataset if keys is None else {key: self.dataset[key] for key in keys}
        return take_all(dataset, positions)

    def _draw(self, size: int) -> Array:
        begin, end = self._head.rows()
        if begin >= end:  # a ring of a few rows, all of which are just being written
            with self._writing:
                begin, end = self._head.rows()
        with self._drawing:
            self.sampled += size
            return self._rng.integers(begin, end, size=size)

    def latest_data_id(self) -> int:
        """Return the number of transitions ever inserted, minus one."""
        return self._head.written - 1

    def get_latest_data(self, from_id: int) -> list[Any]:
        """Return the transitions after ``from_id`` that are still there, oldest first."""
        return self.take_after(from_id).rows

    def take_after(self, from_id: int) -> Taken:
        """Return the transitions after ``from_id`` (copied) and their last ID, atomically."""
        with self._writing:
            new = self._head.written - 1 - from_id
            if new <= 0:
                return Taken([], from_id, 0)
            there = min(new, len(self))
            rows = self._rows(np.arange(self._head.written - there, self._head.written))
            return Taken(rows, self._head.written - 1, new - there)

    def cut(self) -> Part:
        """Return the state of this moment: rows that are there do not change."""
        state = self._common_state()
        with self._writing:
            first, end = self._head.rows()
            state |= {"begin": first, "end": end, **self._ring_state(end)}
            return Part(None, end, end, end, end, state)

    def export_rows(self, begin: int, nbytes: int, until: int | None = None) -> Part:
        """Return rows from a number on, about so many bytes; inserts wait meanwhile."""
        state = self._common_state()
        with self._writing:
            first, end = self._head.rows()
            end = end if until is None else min(end, until)
            begin = min(max(begin, first), end)
            if self._schema is not None:
                end = min(end, begin + max(1, nbytes // max(1, self._schema.nbytes)))
            columns = self._export(np.arange(begin, end)) if end > begin else None
            state |= {"begin": first, "end": end, **self._ring_state(end)}
            return Part(columns, begin, end, end, self._head.written, state)

    def begin_restore(self, state: Mapping[str, Any]) -> None:
        """Let an empty buffer begin at the first row of a snapshot."""
        with self._writing:
            self._head.begin_at(state["begin"])

    def absorb_rows(self, columns: Any, part: slice) -> None:
        """Insert a part of exported rows."""
        self.insert_columns(map_leaves(lambda a: a[part], columns), part.stop - part.start)

    def _ring_state(self, end: int) -> dict[str, Any]:
        """Return what else makes up the ring at this row: plain values."""
        return {}

    def _export(self, rows: Array) -> Any:
        return self._read(rows, None)

    def _rows(self, rows: Array) -> list[Any]:
        columns = ReplayBuffer._read(self, rows, None)
        return [map_leaves(lambda a, i=i: a[i, ...], columns) for i in range(len(rows))]

    @property
    def nbytes(self) -> int:
        """Return the size of the storage in bytes."""
        return sum(storage.nbytes for _, storage in leaves_of(self.dataset or {}))
