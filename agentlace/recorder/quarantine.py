"""Episodes that do not fit their dataset are kept beside it, with the reason."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentlace.codec import decode, encode
from agentlace.files import replace_file

KIND = "quarantined"
MAX_NAME = 150
"""Characters of a file's name that tell something; file systems take 255 bytes."""


def keep_aside(
    folder: Path, name: str, rows: list[Any], reason: str, about: Mapping[str, Any]
) -> Path:
    """Write an episode's transitions as they came, whole and at once or not at all.

    Args:
        folder: made if it is missing.
        name: of the episode; the same one twice is one file.
        rows: its transitions.
        reason: why it is here.
        about: what else is known of it.

    Returns:
        The file, for :func:`read_quarantined`.

    Raises:
        OSError: there is no room for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(name)
    frame = encode({"reason": reason, "about": dict(about), "transitions": rows}, KIND)
    replace_file(path, lambda file: file.writelines(frame.parts))
    return path


def file_name(name: str) -> str:
    """Return a name for a file; no two names have the same one."""
    readable = re.sub(r"[^\w.=-]+", "_", name, flags=re.ASCII)[:MAX_NAME]
    return f"{readable}-{zlib.crc32(name.encode()):08x}.frame"


def read_quarantined(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what is in a file of the quarantine.

    Returns:
        ``reason`` (text), ``transitions`` (as their actor sent them) and ``about``: a dict with
        ``store``, ``actor``, ``id``, ``part``, ``ending`` and ``metadata``.

    Raises:
        DecodeError: it is damaged, or something else.
    """
    tree: dict[str, Any] = decode(bytearray(Path(path).read_bytes()), KIND).tree
    return tree
