"""Durations and sizes as people say them."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Return a duration in its unit; days where nothing is known any more."""
    if seconds is None:
        return "days"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def size(nbytes: float) -> str:
    """Return a number of bytes in its unit, of powers of 1024 as the broker has them."""
    for unit, large in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if nbytes >= large:
            return f"{nbytes / large:,.3g} {unit}"
    return f"{nbytes:.0f} B"
