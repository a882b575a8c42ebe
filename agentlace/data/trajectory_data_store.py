"""A trajectory buffer that a trainer fills from its actors, or an actor sends from."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import Array, leaves_of, nested
from agentlace.data.data_store import Refusals, Taken
from agentlace.data.ends import MARKS, ends_of
from agentlace.data.sampled_store import Part
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer
from agentlace.data.transition_log import TransitionLog
from agentlace.data.turns import Waiting
from agentlace.errors import SchemaMismatch
from agentlace.forks import freed_by_fork

log = logging.getLogger(__name__)

PRIORITIES, WAITING = "/priorities", "/waiting"
NAMES = frozenset(name for names in MARKS for name in names)
"""Entries of a transition that tell about the end; dropped if they are not declared."""


class TrajectoryBufferDataStore(TrajectoryBuffer):
    """A :class:`TrajectoryBuffer` that finds the ends of trajectories in the transitions.

    The last of a trajectory is told by the first of these that a transition has:
    ``end_of_trajectory``; ``dones``; ``terminated`` or ``truncated``; ``masks``, where 0 is an
    end. Shape () or (1,) each. A transition that does not fit ends the trajectory before it,
    since it leaves a hole.

    Several actors may fill it: chunks whose ``meta`` names another ``actor`` than that of the
    trajectory in progress wait, outside of the ring, until that has ended. They may become an
    eighth of ``capacity``; then, and at :meth:`save`, all trajectories in progress are cut; in a
    snapshot they wait on. (A subclass with an ``insert`` of its own gets every row at once, and
    each change of the actor cuts.)

    Sent from, it hands transitions out with ``end_of_trajectory``, once it is known: the newest
    one stays until the next comes or the trajectory ends, and a trajectory that is too short
    is never handed out.

    Args:
        capacity: in rows.
        data_shapes: what a row holds.
        device: see :class:`TrajectoryBuffer`.
        seed: of the generator that samples.
        min_trajectory_length: in rows.
        rlds_logger: is told each transition, see
            :class:`~agentlace.data.transition_log.TransitionLog`; close it when all is inserted.
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
        super().__init__(capacity, data_shapes, seed, min_trajectory_length, device, use_jax)
        self._log = None if rlds_logger is None else TransitionLog(rlds_logger)
        self._actor: Any = None
        self._turns = freed_by_fork(Lock())
        self._waiting = Waiting()
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
        if self._log is not None:
            self._log.add(data, end_of_trajectory)

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
        if self._log is None:
            return self._insert_in_turn(chunk)
        return self._log.add_chunk(chunk, self._insert_in_turn)

    def _insert_in_turn(self, chunk: Chunk) -> Refusals:
        actor = chunk.meta.get("actor")
        with self._turns:
            # A subclass with an insert of its own wants to see each transition.
            if type(self).insert is not TrajectoryBufferDataStore.insert:
                self._cut_for(actor)
                return self._insert_each(chunk.rows())
            if actor in self._waiting or (actor != self._actor and self._in_progress):
                refusals = self._let_wait(actor, chunk)
            else:
                self._actor = actor
                refusals = self._insert_whole(chunk)
            if self._waiting.rows > self.capacity // 8:
                self._warn_of_cut()
            self._give_turns(self.capacity // 8)
        return refusals

    def _insert_whole(self, chunk: Chunk) -> Refusals:
        if not isinstance(chunk.columns, dict):
            return self._insert_each(chunk.rows())
        try:
            self._insert_marked(dict(leaves_of(chunk.columns)), chunk.n, False)
        except SchemaMismatch:
            self.end_trajectory()
            raise
        return {}

    @property
    def _in_progress(self) -> bool:
        return self._episodes.insert_idx > self._trajectory.begin_idx

    def _let_wait(self, actor: Any, chunk: Chunk) -> Refusals:
        """Keep what fits until it is its actor's turn."""
        if isinstance(chunk.columns, dict):
            try:
                self._wait(actor, dict(leaves_of(chunk.columns)), chunk.n)
            except SchemaMismatch:
                self._waiting.end(actor)
                raise
            return {}
        refusals: Refusals = {}
        for number, row in enumerate(chunk.rows()):
            try:
                self._wait(actor, {k: np.asarray(v)[None] for k, v in leaves_of(row)}, 1)
            except Exception as error:
                refusals[number] = error
                self._waiting.end(actor)
        return refusals

    def _wait(self, actor: Any, columns: dict[str, Array], n: int) -> None:
        ends = np.array(ends_of(columns, n))
        columns = self._fitting(self._declared(columns), ends)
        if n:
            self._waiting.add(actor, columns, ends)

    def _give_turns(self, limit: int) -> None:
        """Insert what waits, as far as it may; cut trajectories if more rows than this wait."""
        while self._waiting and not (self._in_progress and self._waiting.rows <= limit):
            if self._in_progress:
                self.end_trajectory()
            for columns, ends in self._waiting.take_whole():
                self._insert_columns(columns, ends)
            if self._waiting:
                self._actor, pieces = self._waiting.take_next()
                for columns, ends in pieces:
                    self._insert_columns(columns, ends)

    def _warn_of_cut(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%d rows of other actors wait for the end of a trajectory of %r, which is cut: "
                "mark the ends of trajectories, or give the store more capacity or each actor one "
                "of its own",
                self._waiting.rows,
                self._actor,
            )

    def _cut_for(self, actor: Any) -> None:
        """End the trajectory in progress if it is another actor's."""
        if actor == self._actor:
            return
        if self._actor is not None:
            self._warn_of_cut()
        self.end_trajectory()
        self._actor = actor

    def settle(self) -> None:
        """Insert what waits; if anything does, all trajectories in progress are cut."""
        with self._turns:
            self._give_turns(0)

    def cut(self) -> Part:
        """Return the state of this moment, with the rows that wait."""
        with self._turns:
            part = super().cut()
            if not self._waiting:
                return part
            return part._replace(arrays={PRIORITIES: part.arrays, WAITING: self._waiting.state()})

    def absorb_arrays(self, arrays: Any) -> None:
        """Take over the arrays of a cut, after all rows."""
        if WAITING in arrays:
            with self._turns:
                for actor, columns, ends in arrays[WAITING]:
                    self._waiting.add(actor, columns, ends)
            arrays = arrays[PRIORITIES]
        if arrays is not None:
            super().absorb_arrays(arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as :class:`TrajectoryBuffer` does; rows that wait are inserted before."""
        self.settle()
        super().save(path)

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
        self._insert_columns(self._declared(columns), ends_of(columns, n) | end)

    def _declared(self, columns: dict[str, Array]) -> dict[str, Array]:
        declared = self._schema.example
        return {k: v for k, v in columns.items() if k in declared or k not in NAMES}

    def end_restore(self, state: Mapping[str, Any]) -> None:
        """Take over what else a snapshot holds, after all its rows."""
        super().end_restore(state)
        self._actor = state.get("actor")

    def _common_state(self) -> dict[str, Any]:
        return {**super()._common_state(), "actor": self._actor}

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
