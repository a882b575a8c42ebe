"""Where in a ring of rows each trajectory begins and ends, and which rows may be sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.data.ring import write_rows

NOT_ENDED = -1


@dataclass
class Trajectory:
    """The trajectory in progress.

    Attributes:
        begin_idx: number of its first row.
        id: counts the trajectories that were long enough.
        min_length: shorter ones are rolled back.
    """

    begin_idx: int
    id: int
    min_length: int


class Episodes:
    """The book of a ring's trajectories. One thread writes; ``range`` may be read by any.

    Rows are numbered from 0 for ever; rolled back ones give their numbers to the next.

    Attributes:
        metadata: per position ``ep_begin`` and ``ep_end`` (the row after the last; -1 while in
            progress), ``trajectory_id``, ``trajectory_begin_flag``, and ``seq_id``, the number
            of the row. Arrays of shape (capacity,).
        arrived: per position, the how manieth row that was ever inserted it is, from 0.
        range: (begin, end) of the rows that may be sampled, replaced as a whole.
        first: number of the first row that ever was there.
        claimed: rows below this number have been written, or are just being written.
        inserted: rows that were ever inserted, those included that were rolled back.
    """

    def __init__(self, capacity: int, min_length: int) -> None:
        self.capacity = capacity
        self.trajectory = Trajectory(0, 0, min_length)
        # Side by side, since a sampler reads both.
        self.spans = np.zeros((capacity, 2), np.int64)
        self.spans[:, 1] = NOT_ENDED
        self.metadata: dict[str, Array] = {
            "ep_begin": self.spans[:, 0],
            "ep_end": self.spans[:, 1],
            "trajectory_begin_flag": np.zeros(capacity, np.bool_),
            "trajectory_id": np.full(capacity, -1, np.int64),
            "seq_id": np.full(capacity, -1, np.int64),
        }
        self.arrived = np.full(capacity, -1, np.int64)
        self.first = self.insert_idx = self.claimed = self.inserted = 0
        self.range = (0, 0)

    def __len__(self) -> int:
        """Return the number of rows that are there."""
        return min(self.insert_idx - self.first, self.capacity)

    def begin_at(self, first: int, trajectory_id: int, inserted: int) -> None:
        """Number the next row ``first``, and have none before."""
        self.first = self.insert_idx = self.claimed = first
        self.range = (first, first)
        self.trajectory.begin_idx, self.trajectory.id = first, trajectory_id
        self.inserted = inserted

    def claim(self, n: int) -> int:
        """Take the rows that the next ``n`` will overwrite out of the range.

        Returns:
            The position at which they begin.
        """
        floor = max(self.claimed, self.insert_idx + n) - self.capacity
        begin, end = self.range
        begin = max(begin, floor)
        last_lost = (floor - 1) % self.capacity
        if floor > 0 and self.metadata["seq_id"][last_lost] == floor - 1:
            cut_end = int(self.metadata["ep_end"][last_lost])
            # Too little is left of the trajectory that loses its beginning.
            if cut_end != NOT_ENDED and cut_end - begin < self.trajectory.min_length:
                begin = max(begin, cut_end)
        self.range = (begin, max(begin, end))
        self.claimed = max(self.claimed, self.insert_idx + n)
        return self.insert_idx % self.capacity

    def commit(self, n: int) -> None:
        """Add the claimed rows, now that they are written, to the trajectory in progress."""
        at, rows = self.insert_idx % self.capacity, np.arange(self.insert_idx, self.insert_idx + n)
        begin = self.trajectory.begin_idx
        write_rows(self.spans, np.full((n, 2), (begin, NOT_ENDED), np.int64), at)
        write_rows(self.metadata["trajectory_id"], np.full(n, self.trajectory.id, np.int64), at)
        write_rows(self.metadata["trajectory_begin_flag"], rows == begin, at)
        write_rows(self.metadata["seq_id"], rows, at)
        write_rows(self.arrived, np.arange(self.inserted, self.inserted + n), at)
        self.insert_idx += n
        self.inserted += n
        if self.insert_idx - begin >= self.trajectory.min_length:
            self.range = (self.range[0], max(self.range[0], self.insert_idx))

    def end(self) -> None:
        """End the trajectory in progress; one that is too short is rolled back."""
        trajectory = self.trajectory
        if self.insert_idx - trajectory.begin_idx < trajectory.min_length:
            self.insert_idx = trajectory.begin_idx
            begin, end = self.range  # reaches further only if min_length was raised meanwhile
            self.range = (begin, max(begin, min(end, self.insert_idx)))
            return
        first = max(trajectory.begin_idx, self.insert_idx - self.capacity)
        rows = np.arange(first, self.insert_idx) % self.capacity
        self.metadata["ep_end"][rows] = self.insert_idx
        trajectory.begin_idx = self.insert_idx
        trajectory.id += 1

    def bounds(self, rows: Array, span: tuple[int, int]) -> tuple[Array, Array]:
        """Return where the trajectories of these rows begin and end within a range of rows."""
        found = self.spans.take(rows % self.capacity, axis=0)
        begin, end = np.maximum(found[:, 0], span[0]), found[:, 1]
        return begin, np.where(end == NOT_ENDED, span[1], np.minimum(end, span[1]))

    def is_last(self, rows: Array) -> Array:
        """Return which rows are the last of their trajectory, as far as is known."""
        last: Array = self.metadata["ep_end"][rows % self.capacity] == rows + 1
        return last

    def restart_state(self, first: int, end: int) -> dict[str, Any]:
        """Return what :meth:`begin_at` needs, to have the rows [first, end)."""
        known = self.metadata["seq_id"][first % self.capacity] == first < self.insert_idx
        ids = self.metadata["trajectory_id"]
        return {
            "min_length": self.trajectory.min_length,
            "trajectory_id": int(ids[first % self.capacity]) if known else self.trajectory.id,
            "inserted": self.inserted - (self.insert_idx - end),
        }

    def settled(self) -> int:
        """Return the row before which all are sure to stay and known to be a last one or not.

        The newest row of the trajectory in progress may yet turn out to be its last, and a
        trajectory that is not long enough yet may be rolled back.
        """
        begin, length = self.trajectory.begin_idx, self.insert_idx - self.trajectory.begin_idx
        return begin if length < self.trajectory.min_length else self.insert_idx - bool(length)

    def state(self) -> dict[str, Any]:
        """Return all but the arrays, as plain values."""
        return {
            "capacity": self.capacity,
            "trajectory": asdict(self.trajectory),
            "range": list(self.range),
            "insert_idx": self.insert_idx,
            "first": self.first,
            "claimed": self.claimed,
            "inserted": self.inserted,
        }

    @classmethod
    def of(
        cls, state: Mapping[str, Any], metadata: Mapping[str, Array], arrived: Array
    ) -> Episodes:
        """Return the book that had this state and these first rows of its arrays."""
        book = cls(state["capacity"], 1)
        book.trajectory = Trajectory(**state["trajectory"])
        begin, end = state["range"]
        book.range = (begin, end)
        for name in ("first", "insert_idx", "claimed", "inserted"):
            setattr(book, name, state[name])
        for name, values in metadata.items():
            book.metadata[name][: len(values)] = values
        book.arrived[: len(arrived)] = arrived
        return book
