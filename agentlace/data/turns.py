"""Rows of actors that wait until another actor's trajectory has ended."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agentlace.data.columns import Array

Columns = dict[str, Array]


class _Piece(NamedTuple):
    columns: Columns
    ends: Array


class Waiting:
    """Rows per actor, oldest first. Not thread-safe.

    Attributes:
        rows: how many wait, of all actors together.
    """

    def __init__(self) -> None:
        self._pieces: dict[Any, list[_Piece]] = {}
        self.rows = 0

    def __bool__(self) -> bool:
        """Whether any row waits."""
        return bool(self._pieces)

    def __contains__(self, actor: Any) -> bool:
        """Whether rows of this actor wait."""
        return actor in self._pieces

    def add(self, actor: Any, columns: Columns, ends: Array) -> None:
        """Put rows behind those of the same actor.

        Args:
            actor: whose they are.
            columns: by name, each ``n`` long; at least one row.
            ends: which of them are the last of a trajectory, bool of shape (n,).
        """
        self._pieces.setdefault(actor, []).append(_Piece(columns, ends))
        self.rows += len(ends)

    def end(self, actor: Any) -> None:
        """Let the trajectory of an actor end with its newest row that waits."""
        for piece in self._pieces.get(actor, [])[-1:]:
            piece.ends[-1] = True

    def state(self) -> list[tuple[Any, Columns, Array]]:
        """Return what :meth:`add` was given and still waits; the ends are copied."""
        pieces = [(actor, piece) for actor in self._pieces for piece in self._pieces[actor]]
        return [(actor, piece.columns, piece.ends.copy()) for actor, piece in pieces]

    def take_whole(self) -> list[_Piece]:
        """Return and forget the trajectories that have ended, each actor's one after the other."""
        taken: list[_Piece] = []
        for actor, pieces in list(self._pieces.items()):
            numbers = [n for n, piece in enumerate(pieces) if piece.ends.any()]
            if not numbers:
                continue
            cut = numbers[-1]
            whole, rest = _split(pieces[cut])
            taken += [*pieces[:cut], whole]
            self._put_back(actor, [*rest, *pieces[cut + 1 :]])
        self.rows -= sum(len(piece.ends) for piece in taken)
        return taken

    def take_next(self) -> tuple[Any, list[_Piece]]:
        """Return and forget all rows of the actor that has waited longest, and its name."""
        actor = next(iter(self._pieces))
        pieces = self._pieces.pop(actor)
        self.rows -= sum(len(piece.ends) for piece in pieces)
        return actor, pieces

    def _put_back(self, actor: Any, pieces: list[_Piece]) -> None:
        if pieces:
            self._pieces[actor] = pieces
        else:
            del self._pieces[actor]


def _split(piece: _Piece) -> tuple[_Piece, list[_Piece]]:
    """Split behind the last end; the second part may be nothing."""
    at = int(np.flatnonzero(piece.ends)[-1]) + 1
    first, second = (
        _Piece({name: column[part] for name, column in piece.columns.items()}, piece.ends[part])
        for part in (slice(at), slice(at, None))
    )
    return first, [second] if len(second.ends) else []
