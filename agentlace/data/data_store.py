"""The contract of a data store, and the queue that an actor sends from."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from agentlace.codec import Chunk, decode, encode
from agentlace.errors import AgentlaceError
from agentlace.forks import freed_by_fork

READ_ATTEMPTS = 1000
"""So often a store is read again because something was inserted meanwhile."""

QUEUE = "queue"
ROWS_PER_FILE = 128
"""Rows that a saved queue has in one file; with rows of 4 MiB it is as large as a frame may be."""

Refusals = dict[int, Exception]
"""What a store raised for some of several transitions, by their number."""


class Taken(NamedTuple):
    """What :func:`take_after` returned.

    Attributes:
        rows: transitions after the given ID, oldest first.
        last_id: ID of the last of them; the given ID if there are none.
        lost: transitions that came after the given ID and were overwritten unseen.
    """

    rows: list[Any]
    last_id: Any
    lost: int


class DataStoreBase:
    """Base of all stores. A subclass for the trainer's side needs ``insert`` and ``__len__``.

    A plain class on purpose: it is mixed with buffers that have their own constructors and
    methods, and nothing is enforced.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def latest_data_id(self) -> Any:
        """Return the ID of the newest transition; opaque to everybody but this store."""
        raise NotImplementedError(f"{type(self).__name__} cannot be sent from: no latest_data_id")

    def get_latest_data(self, from_id: Any) -> list[Any]:
        """Return the transitions after ``from_id``, oldest first; -1 stands for all."""
        raise NotImplementedError(f"{type(self).__name__} cannot be sent from: no get_latest_data")

    def __len__(self) -> int:
        """Return the number of transitions that are there."""
        raise NotImplementedError

    def insert(self, data: Any) -> None:
        """Insert one transition."""
        raise NotImplementedError

    def batch_insert(self, batch_data: list[Any]) -> None:
        """Insert several transitions, oldest first; override it to do so in one go."""
        for data in batch_data:
            self.insert(data)


class QueuedDataStore(DataStoreBase):
    """A bounded queue of transitions, from which an actor sends. Thread-safe.

    At ``capacity`` the oldest transition gives way to the newest. If it was not sent by then,
    the client counts it and warns.

    Args:
        capacity: in transitions.
        stamps: whether each transition that is a dict gets the time of its insertion as
            ``wall_time_ns``, since the epoch, and ``monotonic_time_ns``, of this machine's clock
            that never goes back; int64, nanoseconds. A recorder keeps both with the step.
    """

    def __init__(self, capacity: int, stamps: bool = False) -> None:
        super().__init__(capacity)
        self._stamps = stamps
        self._data_queue: deque[Any] = deque(maxlen=capacity)
        self.latest_seq_id = -1
        self._lock = freed_by_fork(Lock())

    def latest_data_id(self) -> int:
        """Return the number of transitions ever inserted, minus one."""
        return self.latest_seq_id

    def insert(self, data: Any) -> None:
        """Insert one transition. It is kept as it is, not copied."""
        if self._stamps:
            data = stamped(data)
        with self._lock:
            self.latest_seq_id += 1
            self._data_queue.append(data)

    def batch_insert(self, batch_data: list[Any]) -> None:
        """Insert several transitions, oldest first."""
        if self._stamps:
            batch_data = [stamped(data) for data in batch_data]
        with self._lock:
            self.latest_seq_id += len(batch_data)
            self._data_queue.extend(batch_data)

    def get_latest_data(self, from_id: int) -> list[Any]:
        """Return the transitions after ``from_id`` that are still there, oldest first."""
        return self.take_after(from_id).rows

    def take_after(self, from_id: int) -> Taken:
        """Return the transitions after ``from_id`` and their last ID, in one atomic step."""
        with self._lock:
            new = self.latest_seq_id - from_id
            if new <= 0:
                return Taken([], from_id, 0)
            there = min(new, len(self._data_queue))
            rows = list(islice(reversed(self._data_queue), there))[::-1]
            return Taken(rows, self.latest_seq_id, new - there)

    def save_to(self, folder: str) -> None:
        """Write the queue into an empty folder, for a trainer's checkpoint."""
        with self._lock:
            rows, newest = list(self._data_queue), self.latest_seq_id
        for start in range(0, len(rows), ROWS_PER_FILE):
            frame = encode(rows[start : start + ROWS_PER_FILE], QUEUE)
            with open(os.path.join(folder, f"{start}.rows"), "wb") as file:
                file.writelines(frame.parts)
        with open(os.path.join(folder, "newest"), "w") as file:
            file.write(str(newest))

    def load_from(self, folder: str) -> None:
        """Fill the queue, which must be empty, with what :meth:`save_to` wrote."""
        with open(os.path.join(folder, "newest")) as file:
            newest = int(file.read())
        starts = sorted(int(name[:-5]) for name in os.listdir(folder) if name.endswith(".rows"))
        for start in starts:
            with open(os.path.join(folder, f"{start}.rows"), "rb") as file:
                self.batch_insert(decode(bytearray(file.read()), QUEUE).tree)
        self.latest_seq_id = newest

    def __len__(self) -> int:
        """Return the number of transitions in the queue."""
        return len(self._data_queue)


def stamped(data: Any) -> Any:
    """Return a transition with the time, if it is a dict; the dict itself is left alone."""
    if not isinstance(data, dict):
        return data
    times = {
        "wall_time_ns": np.int64(time.time_ns()),
        "monotonic_time_ns": np.int64(time.monotonic_ns()),
    }
    return {**data, **times}


def take_after(store: Any, from_id: Any) -> Taken:
    """Return a store's transitions after ``from_id`` together with the last one's ID.

    Stores that offer ``take_after`` do it atomically. For any other the two calls are repeated
    until no insert has come between them.

    Raises:
        AgentlaceError: the store changes faster than it can be read.
    """
    if hasattr(store, "take_after"):
        taken: Taken = store.take_after(from_id)
        return taken
    for _ in range(READ_ATTEMPTS):
        last_id = store.latest_data_id()
        rows = store.get_latest_data(from_id)
        if store.latest_data_id() == last_id:
            return Taken(list(rows), last_id if len(rows) else from_id, 0)
    raise AgentlaceError(
        f"{type(store).__name__} changes faster than it can be read: give it a "
        "take_after(from_id) that returns rows, their last ID and 0 in one atomic step"
    )


def insert_each(insert: Callable[[Any], object], rows: Sequence[Any]) -> Refusals:
    """Insert transitions one by one; one that is refused does not keep the others out."""
    refusals: Refusals = {}
    for number, row in enumerate(rows):
        try:
            insert(row)
        except Exception as error:
            refusals[number] = error
    return refusals


def put(store: Any, chunk: Chunk) -> Refusals:
    """Insert a chunk as the store likes it best: its columns, all rows at once, or row by row.

    A store with a ``batch_insert`` of its own gets all rows at once, and what that raises comes
    out: only the store knows what it has taken then.
    """
    if hasattr(store, "insert_chunk"):
        return store.insert_chunk(chunk) or {}
    batch_insert = getattr(type(store), "batch_insert", DataStoreBase.batch_insert)
    if batch_insert is DataStoreBase.batch_insert:
        return insert_each(store.insert, chunk.rows())
    store.batch_insert(chunk.rows())
    return {}
