"""One actor's transitions and marks, in their order, become episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from agentlace.codec import Chunk, Mark
from agentlace.codec.mark import BEGIN, DISCARD
from agentlace.recorder.boundaries import Continuity, is_same, told_ending
from agentlace.recorder.episodes import CUT, GAP, GOES_ON, LEFT, REPLACED, Counts, Finished, Thread
from agentlace.rlds.episode import Ending
from agentlace.transport.streams import START, StreamId

ROW_OVERHEAD_BYTES = 1024
"""What a transition costs beside its arrays, at most: here, and as a chunk in the stream."""
NO_LIMIT = 1 << 62


class EpisodeBuilder:
    """Builds one actor's episodes of one store. Not thread-safe: its owner holds a lock.

    An episode that was begun with a mark ends with a mark: its end, its discarding, or the next
    one's beginning. Any other ends as its transitions tell (:func:`told_ending`, next observations
    that do not continue), or with a mark of its end. Where transitions got lost, or the actor was
    started anew, what was open ends as aborted, and something new begins. What was cut or whose
    actor vanished goes on in a further part, if more of it comes.

    Attributes:
        newest: position of the newest transition or mark that came.
        limit_bytes: an episode that is larger is cut.
        nbytes: of the open episode's transitions, at most.
        rows: the open episode's transitions.
        thread: of the running episode; None if none is.
        numbered: the newest episode that ended, as the marks count them; None if not known.
        continuity: of this actor's next observations.
        counts: of this actor.
    """

    def __init__(self, position: StreamId = START) -> None:
        self.newest = position
        self.limit_bytes = NO_LIMIT
        self.nbytes = 0
        self.rows: list[Any] = []
        self.thread: Thread | None = None
        self.numbered: int | None = None
        self.continuity = Continuity()
        self.counts = Counts()
        self._floor = position
        self._finished: list[Finished] = []

    @property
    def is_open(self) -> bool:
        """Whether something has begun that has not ended, so that its stream must be kept."""
        return bool(self.rows) or (self.thread is not None and self.thread.id is None)

    @property
    def floor(self) -> StreamId:
        """Position before what is open: everything up to it is finished."""
        return self._floor if self.is_open else self.newest

    @property
    def open_rows(self) -> int:
        """Number of transitions of the open episode."""
        return len(self.rows)

    def add(self, chunk: Chunk, last: StreamId) -> list[Finished]:
        """Add transitions, of which the last one has this position; returns what is finished."""
        first = StreamId(last.incarnation, last.number - chunk.n + 1)
        self._arrive(first)
        version = _policy_of(chunk)
        for number, row in enumerate(chunk.rows(), first.number):
            if isinstance(row, dict):
                row.setdefault("policy_version", version)
            self._add_row(row, StreamId(last.incarnation, number))
        return self._take_finished()

    def mark(self, mark: Mark, at: StreamId) -> list[Finished]:
        """Take the mark at this position; returns what is finished."""
        self._arrive(at)
        if mark.what == BEGIN:
            self._end_unsaid()
            self.thread = Thread(None, 1, True, mark.episode, mark.metadata)
            self._floor = _before(at)
        elif mark.what == DISCARD:
            self._discard(mark)
        else:
            self._end_as_said(mark)
        self.newest = at
        return self._take_finished()

    def abort(self, reason: str) -> list[Finished]:
        """End what is open, since nothing more of it is expected; returns it."""
        if self.rows:
            self._finish("aborted", reason)
        elif self.is_open:
            self._end_empty()
        if reason == LEFT:
            self.thread = None
        return self._take_finished()

    def cut_if_large(self) -> list[Finished]:
        """End what is open if it is larger than the limit; the rest is a further part."""
        if self.rows and self.nbytes > self.limit_bytes:
            self._cut()
        return self._take_finished()

    # -- transitions ---------------------------------------------------------------------------

    def _add_row(self, row: Any, at: StreamId) -> None:
        if self.rows and self._breaks(self.rows[-1], row):
            self._finish("truncated")
        thread = self.thread or Thread()
        if not self.rows and (thread.id is not None or not thread.is_marked):
            self._floor = _before(at)  # else it is before the mark of its beginning
        self.thread = thread if thread.id is not None else replace(thread, id=at)
        self.rows.append(row)
        self.nbytes += nbytes_of(row) + ROW_OVERHEAD_BYTES
        self.newest = at
        ending = None if thread.is_marked else told_ending(row)
        if ending is not None:
            self._finish(ending)
        elif self.nbytes > self.limit_bytes and len(self.rows) > 1:
            self._cut()

    def _cut(self) -> None:
        """End a part, but for its last transition: only with that one the end may be told."""
        last = self.rows.pop() if len(self.rows) > 1 else None
        self._finish("truncated", CUT)
        if last is not None:
            self.rows, self.nbytes = [last], nbytes_of(last) + ROW_OVERHEAD_BYTES
            self._floor = _before(self.newest)

    def _breaks(self, before: Any, row: Any) -> bool:
        """Whether the open episode ended with the row before, as the next observations tell."""
        if not (isinstance(before, dict) and isinstance(row, dict) and "observations" in row):
            return False
        if "next_observations" not in before:
            before["next_observations"] = row["observations"]
            return False
        continues = is_same(before["next_observations"], row["observations"])
        if continues:
            before["next_observations"] = row["observations"]  # in memory once
        assert self.thread is not None
        return self.continuity.note(continues) and not self.thread.is_marked

    # -- ends ----------------------------------------------------------------------------------

    def _arrive(self, first: StreamId) -> None:
        """End what cannot go on: its actor was started anew, or something is missing."""
        is_new = first.incarnation != self.newest.incarnation
        expected = 1 if is_new else self.newest.number + 1
        if not is_new and first.number <= expected:
            return
        joined_late = self.newest == START and first.number > expected
        missing = 0 if joined_late else first.number - expected
        self.counts.lost += missing
        if self.rows:
            self._finish("aborted", GAP if missing and not is_new else REPLACED)
        self.thread = None
        if is_new:
            self.numbered = None if joined_late else 0

    def _end_unsaid(self) -> None:
        """End an episode that another one follows without an end between them."""
        if self.rows:
            self._finish(told_ending(self.rows[-1]) or "aborted")
        elif self.is_open:
            self._end_empty()

    def _end_as_said(self, mark: Mark) -> None:
        thread: Thread | None = self.thread
        if thread is not None:
            metadata = {**thread.metadata, **mark.metadata}
            self.thread = replace(thread, number=mark.episode, metadata=metadata)
        if self.rows:
            how: Any = mark.how
            self._finish(how)
        elif self.is_open:
            self._end_empty()
        else:  # its transitions have ended it already, or its actor had vanished
            self._count(mark.episode, is_counted=True)
            self.thread = None

    def _end_empty(self) -> None:
        assert self.thread is not None
        self._count(self.thread.number, is_counted=False)
        self.counts.empty += 1
        self.thread = None

    def _discard(self, mark: Mark) -> None:
        self._count(mark.episode, is_counted=True)
        self.counts.discarded += 1
        self.thread, self.rows, self.nbytes = None, [], 0

    def _finish(self, ending: Ending, reason: str = "") -> None:
        thread, rows = self.thread, self.rows
        assert thread is not None and rows
        if isinstance(rows[-1], dict) and "observations" in rows[-1]:
            rows[-1].setdefault("next_observations", rows[-1]["observations"])
        if thread.number:
            self._count(thread.number, is_counted=thread.part > 1)
        else:
            self.counts.sent += thread.part == 1
        self._finished.append(Finished(rows, ending, thread, reason))
        self.rows, self.nbytes = [], 0
        self.thread = replace(thread, part=thread.part + 1) if reason in GOES_ON else None

    def _count(self, number: int, is_counted: bool) -> None:
        """Count the episodes up to this one, of which some may never have arrived."""
        before = number - 1 if self.numbered is None else self.numbered
        self.counts.sent += max(number - before - is_counted, 0)
        self.numbered = max(number, before)

    def _take_finished(self) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished


def _before(at: StreamId) -> StreamId:
    return StreamId(at.incarnation, at.number - 1)


def _policy_of(chunk: Chunk) -> np.int64:
    """Return the number of the network that acted, -1 if that is not known."""
    policy: Any = chunk.meta.get("policy")
    is_told = isinstance(policy, list) and len(policy) == 2 and type(policy[1]) is int
    version: np.int64 = np.int64(policy[1] if is_told else -1)
    return version


def nbytes_of(tree: Any) -> int:
    """Return the size of a tree's arrays and texts, in bytes."""
    if isinstance(tree, np.ndarray | np.generic):
        return int(tree.nbytes)
    if isinstance(tree, Mapping):
        return sum(map(nbytes_of, tree.values()))
    if isinstance(tree, list | tuple | set):
        return sum(map(nbytes_of, tree))
    return len(tree) if isinstance(tree, str | bytes) else 8
