"""Numbers as people read them."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """Return a duration; ``?`` if it is not known."""
    if value is None:
        return "?"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{max(value, 0.0):.0f} s"


def duration(value: float | None) -> str:
    """Return how long ago something was; ``days`` where the broker remembers it no more."""
    return "days" if value is None else seconds(value)


def size(nbytes: float) -> str:
    """Return a number of bytes."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= 0.9995 * scale:
            return f"{nbytes / scale:.{1 if nbytes < 99.5 * scale else 0}f} {unit}"
    return f"{nbytes:.0f} B"


def per_second(rate: float) -> str:
    """Return a rate, without its unit."""
    if rate >= 9_999.5:
        return f"{rate / 1000:,.0f}k"
    return f"{rate:,.0f}" if rate >= 99.5 else f"{rate:.3g}"
