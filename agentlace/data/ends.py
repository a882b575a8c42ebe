"""Where transitions tell that they are the last of their trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.data.columns import Array
from agentlace.rlds.episode import Ending

MARKS = (("end_of_trajectory",), ("dones",), ("terminated", "truncated"))
"""Entries that tell it, those first that count first; after them ``masks``, where 0 is an end."""


TOLD = (*(name for names in MARKS for name in names), "masks")
"""All of them."""


def ends_of(columns: Mapping[str, Any], n: int) -> Array:
    """Return which of ``n`` transitions are the last of their trajectory, bool of shape (n,).

    Args:
        columns: their top-level entries, of shape (n,) or (n, 1).
        n: how many there are.
    """
    for names in MARKS:
        found = [np.asarray(columns[k], bool).reshape(n, -1).any(1) for k in names if k in columns]
        if found:
            ends: Array = np.logical_or.reduce(found, axis=0)
            return ends
    if "masks" in columns:
        alive = np.asarray(columns["masks"]).astype(bool).reshape(n, -1)
        return np.asarray(~alive.all(axis=1))
    return np.zeros(n, bool)


def ending_of(row: Mapping[str, Any], ends: bool = False) -> Ending | None:
    """Return how an episode ends with a transition; None if it goes on.

    Args:
        row: the transition; :func:`ends_of` tells whether it is the last, and so does
            ``truncates`` beside it. It is terminated if it says so, or its mask is 0, or if
            ``dones`` is all that it says.
        ends: whether it is the last, whatever it says.
    """
    ends = ends or bool(np.any(row.get("truncates", False)))
    if not (ends or ends_of({k: np.asarray(row[k])[None] for k in TOLD if k in row}, 1)[0]):
        return None
    if "terminated" in row:
        return "terminated" if np.any(row["terminated"]) else "truncated"
    if "masks" in row:
        return "truncated" if np.all(row["masks"]) else "terminated"
    by_limit = any(np.any(row.get(key, False)) for key in ("truncated", "truncates"))
    return "terminated" if np.any(row.get("dones", False)) and not by_limit else "truncated"
