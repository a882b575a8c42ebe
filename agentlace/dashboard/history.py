"""What the plots show: a bounded number of series, each over the last half hour."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.dashboard.charts import Place

POINTS = 1800
"""So many points are kept of each series: half an hour, one a second."""
SERIES_MAX = 256
"""So many series are kept, 7 KiB each; the one that was silent the longest gives way."""
DIGITS = 5
"""Significant digits of what is told: more than a plot can show."""


class History:
    """Rings of float32, one per series, and one of times. Thread-safe.

    Args:
        points: kept of each series.
        series_max: kept at most.
    """

    def __init__(self, points: int = POINTS, series_max: int = SERIES_MAX) -> None:
        self._points = points
        self._series_max = series_max
        self._lock = threading.Lock()
        self._at = np.full(points, np.nan)
        self._series: dict[Place, np.ndarray[Any, Any]] = {}
        self._heard: dict[Place, int] = {}
        self._count = 0

    def add(self, at_s: float, values: Mapping[Place, float]) -> None:
        """Add a point to each series; those without a value have a gap there."""
        with self._lock:
            row = self._count % self._points
            self._count += 1
            self._at[row] = at_s
            for ring in self._series.values():
                ring[row] = np.nan
            for place, value in values.items():
                self._ring(place)[row] = value
                self._heard[place] = self._count
            for place in [p for p, n in self._heard.items() if self._count - n >= self._points]:
                self._forget(place)

    def _ring(self, place: Place) -> np.ndarray[Any, Any]:
        if place not in self._series:
            if len(self._series) >= self._series_max:
                self._forget(min(self._heard, key=self._heard.__getitem__))
            self._series[place] = np.full(self._points, np.nan, np.float32)
            self._heard[place] = self._count
        return self._series[place]

    def _forget(self, place: Place) -> None:
        del self._series[place], self._heard[place]

    @property
    def nbytes(self) -> int:
        """Memory of all rings."""
        with self._lock:
            return self._at.nbytes + sum(ring.nbytes for ring in self._series.values())

    def told(self) -> dict[str, Any]:
        """Return all as plain lists: ``at`` in seconds, and per chart and label the values.

        Where a series has a gap there is None.
        """
        with self._lock:
            n = min(self._count, self._points)
            order = (np.arange(self._count - n, self._count)) % self._points
            at = [round(value, 2) for value in self._at[order].tolist()]
            charts: dict[str, dict[str, list[float | None]]] = {}
            for (chart, label), ring in self._series.items():
                values = ring[order].tolist()
                charts.setdefault(chart, {})[label] = [rounded(value) for value in values]
        return {"at": at, "charts": charts}


def rounded(value: float | None) -> float | None:
    """Return a value with few digits, None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
