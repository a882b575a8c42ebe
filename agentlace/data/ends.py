"""Where transitions tell that they are the last of their trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.data.columns import Array

MARKS = (("end_of_trajectory",), ("dones",), ("terminated", "truncated"))
"""Entries that tell it, those first that count first; after them ``masks``, where 0 is an end."""


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
