"""Frames of observation and next observation in one array."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentlace.data.ring import joined_rows

NOW, NEXT = "observations", "next_observations"
FRAME_DIMS = 5
"""Of a batch of stacked frames: batch, history, height, width, channel."""


def pack_frames(batch: dict[str, Any]) -> dict[str, Any]:
    """Join the stacked frames of observations and next observations, which overlap.

    Frames are uint8 arrays of shape (n, history, height, width, channels), of which the next
    observation shows one more than the observation. Joined they are in ``observations`` alone,
    of shape (n, history + 1, ...): all but the last belong to the observation, all but the
    first to the next one. Everything else stays as it is.
    """
    now, after = _packed(batch[NOW], batch[NEXT])
    return {**batch, NOW: now, NEXT: after}


def _packed(now: Any, after: Any) -> tuple[Any, Any]:
    """Return both trees, with frames joined in the first and removed from the second."""
    if not isinstance(now, dict):
        is_frames = getattr(now, "ndim", 0) >= FRAME_DIMS and now.dtype == np.uint8
        return (_joined(now, after), {}) if is_frames else (now, after)
    both = {key: _packed(now[key], after[key]) for key in now if key in after}
    rest = {key: right for key, (_, right) in both.items() if not _is_empty(right)}
    rest.update({key: value for key, value in after.items() if key not in both})
    return {**now, **{key: left for key, (left, _) in both.items()}}, rest


def _joined(now: Any, after: Any) -> Any:
    return joined_rows([now, after[:, -1:]], axis=1)


def _is_empty(tree: Any) -> bool:
    return isinstance(tree, dict) and not tree
