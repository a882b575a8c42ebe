"""Cutting transitions into chunks of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentlace import codec
from agentlace.errors import EncodeError

CHUNK_MAX_ROWS = 4096
CHUNK_MAX_BYTES = 8 << 20
"""A larger batch is split; a consumer's memory and the time it holds its store are bounded."""


def cut(
    encoder: codec.ChunkEncoder,
    rows: list[Any],
    meta: Mapping[str, Any],
    errors: list[EncodeError],
) -> Iterator[tuple[codec.Frame, int]]:
    """Yield the chunks' frames, and how many transitions each holds.

    Args:
        encoder: of the store.
        rows: the transitions.
        meta: travels with each chunk.
        errors: takes those of transitions that may not travel; all others are yielded.
    """
    for start in range(0, len(rows), CHUNK_MAX_ROWS):
        yield from _split(encoder, rows[start : start + CHUNK_MAX_ROWS], meta, errors)


def _split(
    encoder: codec.ChunkEncoder,
    rows: list[Any],
    meta: Mapping[str, Any],
    errors: list[EncodeError],
) -> Iterator[tuple[codec.Frame, int]]:
    """Yield rows as one chunk, or in halves if they are too large or one may not travel."""
    try:
        frame = encoder.encode(rows, meta)
    except EncodeError as error:
        if len(rows) == 1:
            errors.append(error)
            return
        frame = None
    if frame is None or (frame.nbytes > CHUNK_MAX_BYTES and len(rows) > 1):
        middle = len(rows) // 2
        yield from _split(encoder, rows[:middle], meta, errors)
        yield from _split(encoder, rows[middle:], meta, errors)
        return
    yield frame, len(rows)
