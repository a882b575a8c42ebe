"""Action chunks by the control tick of the observation that they were made from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agentlace.data.columns import leaves_of, map_leaves
from agentlace.errors import SchemaMismatch
from agentlace.robot.blend import Blend


class _Chunk(NamedTuple):
    tick: int
    length: int
    actions: Any


class ActionPlan:
    """What is known of the actions to come. Not thread-safe.

    Args:
        blend: makes one action of those that several chunks have for a tick.
    """

    def __init__(self, blend: Blend) -> None:
        self._blend = blend
        self._chunks: list[_Chunk] = []

    def add(self, tick: int, actions: Any) -> None:
        """Take in a chunk.

        Args:
            tick: of the observation that it was made from; its first action belongs there.
            actions: a tree of arrays of shape (n, ...), of one n.

        Raises:
            SchemaMismatch: it is none, or not like the chunk before.
        """
        actions = map_leaves(np.asarray, actions)
        length = _length(actions)
        if self._chunks:
            _check_like(actions, self._chunks[0].actions)
        self._chunks.append(_Chunk(tick, length, actions))
        self._chunks.sort(key=lambda chunk: -chunk.tick)

    def at(self, tick: int) -> Any:
        """Return the action for a tick, None if there is none, and forget what came before."""
        newest = self._chunks[:1]
        self._chunks = [c for c in self._chunks if c.tick + c.length > tick] or newest
        there = [c for c in self._chunks if c.tick <= tick < c.tick + c.length]
        if not there:
            return None
        ages = np.array([tick - c.tick for c in there])
        rows = [_row(chunk.actions, tick - chunk.tick) for chunk in there]
        return map_leaves(lambda *actions: self._blend(np.stack(actions), ages), *rows)

    @property
    def end(self) -> int | None:
        """Tick behind the last known action, None if there never was one."""
        return max((c.tick + c.length for c in self._chunks), default=None)


def _row(actions: Any, number: int) -> Any:
    return map_leaves(lambda leaf: leaf[number], actions)


def _length(actions: Any) -> int:
    lengths = {leaf.shape[0] if leaf.ndim else -1 for _, leaf in leaves_of(actions)}
    if len(lengths) != 1 or min(lengths) < 1:
        raise SchemaMismatch(
            "actions", "an action chunk is an array of shape (n, ...), or a tree of such"
        )
    return int(lengths.pop())


def _check_like(actions: Any, expected: Any) -> None:
    found, wanted = dict(leaves_of(actions)), dict(leaves_of(expected))
    for path in found.keys() ^ wanted.keys():
        raise SchemaMismatch(path, "not in all action chunks")
    for path, leaf in found.items():
        if leaf.shape[1:] != wanted[path].shape[1:]:
            shapes = f"actions of shape {leaf.shape[1:]}, before {wanted[path].shape[1:]}"
            raise SchemaMismatch(path or "actions", shapes)
