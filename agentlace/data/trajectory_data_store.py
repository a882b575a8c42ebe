"""A trajectory buffer that a trainer fills from its actors, or an actor sends from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import Array, leaves_of, nested
from agentlace.data.data_store import Refusals, Taken
from agentlace.data.ends import MARKS, ends_of
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer
from agentlace.errors import SchemaMismatch

log = logging.getLogger(__name__)

NAMES = frozenset(name for names in MARKS for name in names)
"""Entries of a transition that tell about the end; dropped if they are not declared."""


class TrajectoryBufferDataStore(TrajectoryBuffer):
    """A :class:`TrajectoryBuffer` that finds the ends of trajectories in the transitions.

    The last of a trajectory is told by the first of these that a transition has:
    ``end_of_trajectory``; ``dones``; ``terminated`` or ``truncated``; ``masks``, where 0 is an
    end. Shape () or (1,) each. A transition that does not fit ends the trajectory before it,
    since it leaves a hole; so does a chunk whose ``meta`` names another ``actor``.

    Sent from, it hands transitions out with ``end_of_trajectory``, once it is known: the newest
    one stays until the next comes or the trajectory ends, and a trajectory that is too short
    is never handed out.

    Args:
        capacity: in rows.
        data_shapes: what a row holds.
        device: see :class:`TrajectoryBuffer`.
        seed: of the generator that samples.
        min_trajectory_length: in rows.
        rlds_logger: comes with the RLDS recorder; must be None until then.
        use_jax: see :class:`TrajectoryBuffer`.
    """

    def __init__(
        self,
        capacity: int,
        data_shapes: Sequence[DataShape],
        device: Any = None,
        seed: int = 0,
        min_trajectory_length: int = 2,
        rlds_logger: Any = None,
        use_jax: bool = False,
    ) -> None:
        if rlds_logger is not None:
            raise NotImplementedError("rlds_logger comes with the RLDS recorder")
        super().__init__(capacity, data_shapes, seed, min_trajectory_length, device, use_jax)
        self._actor: Any = None
        self._has_warned = False

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Insert one transition.

        Args:
            data: a dict, nested where names have slashes; it is not changed.
            end_of_trajectory: whether it is the last, whatever the transition says.

        Raises:
            SchemaMismatch: it does not fit the declared shapes; nothing of it was stored.
        """
        columns = {name: np.asarray(value)[None] for name, value in leaves_of(data)}
        self._insert_marked(columns, 1, end_of_trajectory)

    def batch_insert(self, batch_data: Sequence[Any]) -> None:
        """Insert several transitions, oldest first.

        Raises:
            SchemaMismatch: the first that does not fit; the others were inserted.
        """
        for error in self._insert_each(batch_data).values():
            raise error

    def insert_chunk(self, chunk: Chunk) -> Refusals:
        """Insert a chunk as it came from the stream.

        Returns:
            The rows that do not fit the store, by number; the others were inserted.

        Raises:
            SchemaMismatch: its columns do not fit the store; nothing of it was stored.
        """
        self._turn_to(chunk.meta.get("actor"))
        # A subclass with an insert of its own wants to see each transition.
        own_insert = type(self).insert is not TrajectoryBufferDataStore.insert
        if own_insert or not isinstance(chunk.columns, dict):
            return self._insert_each(chunk.rows())
        try:
            self._insert_marked(dict(leaves_of(chunk.columns)), chunk.n, False)
        except SchemaMismatch:
            self.end_trajectory()
            raise
        return {}

    def _turn_to(self, actor: str | None) -> None:
        """Begin a trajectory if another actor goes on: its rows do not follow the other's."""
        if actor == self._actor:
            return
        if self._actor is not None and not self._has_warned:
            self._has_warned = True
            log.warning(
                "this store gets chunks of several actors (%r after %r): each change ends a "
                "trajectory, and one that is too short then is dropped. Give each actor a store of "
                "its own, or let it update() at the end of its episodes",
                actor,
                self._actor,
            )
        self.end_trajectory()
        self._actor = actor

    def _insert_each(self, rows: Sequence[Any]) -> Refusals:
        refusals: Refusals = {}
        for number, row in enumerate(rows):
            try:
                self.insert(row)
            except Exception as error:
                refusals[number] = error
                self.end_trajectory()
        return refusals

    def _insert_marked(self, columns: dict[str, Array], n: int, end: bool) -> None:
        ends = ends_of(columns, n) | end
        declared = self._schema.example
        kept = {k: v for k, v in columns.items() if k in declared or k not in NAMES}
        self._insert_columns(kept, ends)

    def latest_data_id(self) -> int:
        """Return the number of transitions ever inserted, minus one."""
        return self.inserted - 1

    def get_latest_data(self, from_id: int) -> list[Any]:
        """Return the transitions after ``from_id`` that are still there, oldest first."""
        return self.take_after(from_id).rows

    def take_after(self, from_id: int) -> Taken:
        """Return the settled transitions after ``from_id`` (copied) and their last ID, atomically.

        Those that were rolled back are skipped; they count as lost only if rows around them are.
        """
        book = self._episodes
        with self._writing:
            end = book.settled()
            there = max(book.first, book.claimed - self.capacity)
            rows = np.arange(min(max(there, end - (book.inserted - 1 - from_id)), end), end)
            arrived = book.arrived[rows % self.capacity]
            rows, new = rows[arrived > from_id], arrived[arrived > from_id]
            if not len(rows):
                return Taken([], from_id, 0)
            whole = rows[0] > there
            lost = 0 if whole else int(new[0]) - from_id - 1
            return Taken(self._rows(rows), int(new[-1]), lost)

    def _rows(self, rows: Array) -> list[Any]:
        """Return rows as nested dicts of arrays."""
        columns = self._export(rows)
        return [nested({k: v[i, ...] for k, v in columns.items()}) for i in range(len(rows))]
