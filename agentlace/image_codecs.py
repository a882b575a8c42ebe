"""How the codecs of images are written in a config."""

from __future__ import annotations

from collections.abc import Mapping

JPEG_QUALITY = 95
"""Of JPEGs whose codec names none."""


def parsed(codec: object) -> tuple[str, int | None]:
    """Return a codec's format, and the quality if that is JPEG; raises ValueError."""
    format, has_quality, quality = str(codec).partition(":")
    if codec in ("raw", "png"):
        return format, None
    if format == "jpeg" and not has_quality:
        return format, JPEG_QUALITY
    if format == "jpeg" and quality.isdecimal() and 1 <= int(quality) <= 100:
        return format, int(quality)
    raise ValueError(f"{codec!r} is none: use 'raw', 'png', 'jpeg' or 'jpeg:85' (1 to 100)")


def in_one_spelling(codecs: Mapping[str, str]) -> dict[str, str]:
    """Return codecs as both ends compare them, without those that do nothing.

    Raises:
        ValueError: there is no such codec.
    """
    found = {place: parsed(codec) for place, codec in codecs.items()}
    return {
        place: format if quality is None else f"{format}:{quality}"
        for place, (format, quality) in sorted(found.items())
        if format != "raw"
    }
