"""A replay buffer that stores each camera frame once, however many transitions show it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import Array, Schema, leaves_of, map_leaves
from agentlace.data.data_store import Refusals
from agentlace.data.ends import ends_of
from agentlace.data.frame_windows import BLOCK_ROWS, FrameWindows
from agentlace.data.replay_buffer import ReplayBuffer
from agentlace.errors import SchemaMismatch

NOW, NEXT = "observations", "next_observations"


class FrameReplayBuffer(ReplayBuffer):
    """The newest ``capacity`` transitions, each camera frame of which is stored once.

    A transition is a dict with ``observations`` and ``next_observations``. A frame that a
    transition's observation shares with the next observation of the one before is recognised by
    its content, so episodes need no marks: what was inserted comes out again. All frames that
    a transition shows stay until it is overwritten. Memory: per transition 4 bytes for each of
    ``history`` + 1 frames, everything that is no frame twice (now and next), and one frame of
    each camera; per episode one more.

    Args:
        capacity: in transitions.
        example: a transition, of which only shapes and dtypes count.
        seed: of the generator that samples.
        frames: paths in the observations that are frames, such as ``["wrist", "front"]``; by
            default all uint8 arrays of two or more dimensions, that of the history not counted.
        history: number of frames that a sampled observation shows, the newest last.
        stacked: whether inserted observations have these frames already, as their first
            dimension. Else the buffer puts them together: the first of an episode is repeated
            for those before it. For this, if ``history`` is more than 1, it must be told where
            episodes end, as :class:`TrajectoryBufferDataStore` is. Several actors may fill it by
            turns; of one whose newest row was overwritten meanwhile the history begins anew.
        folder: for files to keep the frames in, mapped into memory, for buffers larger than it.
            They are scratch files that are overwritten at the start. A full disk ends the
            process.
    """

    def __init__(
        self,
        capacity: int,
        example: Any = None,
        seed: int | None = None,
        frames: Sequence[str] | None = None,
        history: int = 1,
        stacked: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if history < 1:
            raise ValueError(f"history={history} must be positive")
        self._wanted = frames
        self._history = history
        self._stacked = stacked
        self._folder = None if folder is None else Path(folder)
        self._cameras: dict[str, str] = {}
        self._inserting = threading.local()
        super().__init__(capacity, example, seed)

    # -- storing -----------------------------------------------------------------------------------

    def _allocate(self, schema: Schema) -> Any:
        leaves = dict(leaves_of(schema.example))
        self._cameras = self._find_cameras(leaves)
        lead = int(self._stacked)
        shapes = {c: (leaves[p].shape[lead:], leaves[p].dtype) for c, p in self._cameras.items()}
        self._windows = FrameWindows(
            self.capacity, shapes, self._history, self._stacked, self._folder
        )
        rest = self._without_frames(schema.example)
        return map_leaves(lambda a: np.zeros((self.capacity, *a.shape), a.dtype), rest)

    def _find_cameras(self, leaves: dict[str, Array]) -> dict[str, str]:
        """Return the frames' names, and their paths in a transition."""
        inside = {p.removeprefix(NOW).lstrip("/"): p for p in leaves if p.split("/")[0] == NOW}
        dims = 2 + int(self._stacked)
        names = self._wanted
        if names is None:
            names = [c for c, p in inside.items() if leaves[p].dtype == np.uint8]
            names = [c for c in names if leaves[inside[c]].ndim >= dims]
        if not names:
            raise SchemaMismatch(NOW, "has no frames: no uint8 arrays of two or more dimensions")
        for camera in names:
            if camera not in inside:
                raise SchemaMismatch(f"{NOW}/{camera}", "missing from the transition, but a frame")
            path = inside[camera]
            now, after = leaves[path], leaves.get(_next(path))
            if after is None or (after.shape, after.dtype) != (now.shape, now.dtype):
                raise SchemaMismatch(_next(path), f"must be like {path}: {now.shape} {now.dtype}")
            if self._stacked and now.shape[:1] != (self._history,):
                reason = f"shape {now.shape} does not begin with history={self._history}"
                raise SchemaMismatch(path, reason)
        return {camera: inside[camera] for camera in names}

    def _without_frames(self, tree: Any, path: str = "") -> Any:
        gone = {path for now in self._cameras.values() for path in (now, _next(now))}
        if not isinstance(tree, dict):
            return tree
        rest = {
            key: self._without_frames(value, f"{path}{key}/")
            for key, value in tree.items()
            if path + str(key) not in gone
        }
        empty = [key for key, value in rest.items() if isinstance(value, dict) and not value]
        return {key: value for key, value in rest.items() if key not in empty or not path}

    def _check(self, schema: Schema, columns: Any, lead: int) -> None:
        super()._check(schema, columns, lead)
        if not self._stacked or self._history == 1:
            return
        leaves = dict(leaves_of(columns))
        for path in self._cameras.values():
            now, after = np.asarray(leaves[path]), np.asarray(leaves[_next(path)])
            if lead:  # history first
                now, after = now.swapaxes(0, 1), after.swapaxes(0, 1)
            if not np.array_equal(after[:-1], now[1:]):
                raise SchemaMismatch(_next(path), f"does not show the frames of {path}, one later")

    def insert_chunk(self, chunk: Chunk) -> Refusals:
        """Insert a chunk as it came from the stream; each actor has histories of its own.

        Returns:
            As for :class:`ReplayBuffer`.

        Raises:
            SchemaMismatch: its columns do not fit the store; nothing of it was stored.
        """
        self._inserting.actor = chunk.meta.get("actor")
        try:
            return super().insert_chunk(chunk)
        finally:
            self._inserting.actor = None

    def _write_row(self, transition: Any) -> None:
        self._write(map_leaves(lambda value: np.asarray(value)[None], transition))

    def _write(self, columns: Any) -> None:
        n = len(next(leaf for _, leaf in leaves_of(columns)))
        for start in range(0, n, min(BLOCK_ROWS, self.capacity)):
            part = slice(start, min(start + BLOCK_ROWS, start + self.capacity, n))
            self._write_block(map_leaves(lambda a, part=part: a[part], columns))

    def _write_block(self, columns: Any) -> None:
        leaves = dict(leaves_of(columns))
        now = {c: leaves[path] for c, path in self._cameras.items()}
        after = {c: leaves[_next(path)] for c, path in self._cameras.items()}
        ends = ends_of(columns, len(next(iter(now.values()))))
        row, actor = self._head.written, getattr(self._inserting, "actor", None)
        rest = self._without_frames(columns)
        self._put(rest, len(ends), lambda: self._windows.store(now, after, ends, row, actor))

    def _put(self, rest: Any, n: int, store: Callable[[], Array]) -> None:
        first, end = self._head.rows()
        at = self._head.claim(n)
        self._windows.write(store(), range(end, end + n), range(first, self._head.rows()[0]))
        self._write_columns(rest, at)
        self._head.commit()

    def _export(self, rows: Array) -> Any:
        return {"rest": super()._read(rows, None), **self._windows.export(rows)}

    def absorb_rows(self, columns: Any, part: slice) -> None:
        """Insert a part of exported rows."""
        rest = map_leaves(lambda a: a[part], columns["rest"])
        shown = columns["shown"][part]
        with self._writing:
            self._schema_for(self._first_of(rest, columns["frames"], shown[0]))
            size = min(BLOCK_ROWS, self.capacity)
            for start in range(0, len(shown), size):
                rows = slice(start, start + size)
                exported = {"frames": columns["frames"], "shown": shown[rows]}
                begin, n = self._head.written, len(shown[rows])
                store = partial(self._windows.absorb, exported, range(begin, begin + n))
                self._put(map_leaves(itemgetter(rows), rest), n, store)
        self._announce()

    def _ring_state(self, end: int) -> dict[str, Any]:
        return {"newest": [] if self.dataset is None else self._windows.newest(end)}

    def end_restore(self, state: Mapping[str, Any]) -> None:
        """Take over what else a snapshot holds, after all its rows."""
        super().end_restore(state)
        if self.dataset is not None:
            there = [each for each in state.get("newest", ()) if each[1] >= state["begin"]]
            self._windows.go_on(there)

    def _first_of(self, rest: Any, frames: dict[str, Array], window: Array) -> Any:
        """Return the first exported transition as it was inserted."""
        transition = map_leaves(lambda a: a[0], rest)
        for camera, array in frames.items():
            frame = array[window[1:]] if self._stacked else array[window[-1]]
            for top in (NOW, NEXT):
                _place(transition, f"{top}/{camera}" if camera else top, frame)
        return transition

    # -- reading -----------------------------------------------------------------------------------

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
            pack_obs_and_next_obs: return frames only in ``observations``, with a dimension of
                ``history`` + 1 frames: the observation's, and one more, of the next one.

        Returns:
            The transition's tree, each leaf a new array with leading dimension ``batch_size``.
            Frames have a dimension of ``history`` next, if that is not 1 or they came stacked.

        Raises:
            ValueError: the buffer is empty.
        """
        return self._sample(batch_size, keys, indx, pack_obs_and_next_obs)

    def _read(self, rows: Array, keys: Sequence[str] | None, packed: bool = False) -> Any:
        batch = super()._read(rows, keys and [key for key in keys if key in self.dataset])
        windows = self._windows.take(rows)
        single = self._history == 1 and not self._stacked
        shown = {NOW: windows[:, 0] if single else windows[:, :-1]}
        shown[NEXT] = windows[:, 1] if single else windows[:, 1:]
        if packed:
            shown = {NOW: windows}
        for part, slots in shown.items():
            if keys is None or part in keys:
                for camera, frames in self._windows.frames(slots).items():
                    path = self._cameras[camera]
                    _place(batch, path if part == NOW else _next(path), frames)
        return batch

    def _rows(self, rows: Array) -> list[Any]:
        """Return rows as they were inserted; those that share a frame share its memory."""
        rest = super()._read(rows, None)
        windows = self._windows.take(rows)
        slots, places = np.unique(windows, return_inverse=True)
        places = places.reshape(windows.shape)
        frames = self._windows.frames(slots)
        result = []
        for i, window in enumerate(places):
            row = map_leaves(lambda a, i=i: a[i, ...], rest)
            for camera, path in self._cameras.items():
                for inside, shown in ((path, window[:-1]), (_next(path), window[1:])):
                    frame = frames[camera]
                    value = frame[shown] if self._stacked else frame[shown[-1]]
                    _place(row, inside, value)
            result.append(row)
        return result

    @property
    def nbytes(self) -> int:
        """Return the bytes of what is stored; frames that are not in use do not count."""
        return 0 if self.dataset is None else super().nbytes + self._windows.nbytes


def _next(path: str) -> str:
    return NEXT + path.removeprefix(NOW)


def _place(tree: Any, path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf
