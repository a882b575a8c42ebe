"""Files that are either whole or not there, with arrays in them and no pickle."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agentlace.codec.dtypes import dtype_name, dtype_of
from agentlace.data.columns import Array
from agentlace.errors import DecodeError
from agentlace.files import replace_file as replace_file
from agentlace.files import sync_folder as sync_folder

PIECE_BYTES = 8 << 20
"""So much of a file is read at a time to be checked."""
STATE = "state"
"""Member of an archive that holds plain values, as JSON; all others are arrays."""


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while it replaced a file has left in a folder.

    Only for a folder in which nobody else writes.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink()


def sync_file(path: Path) -> None:
    """Make a file's content survive a power cut."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum_of(path: Path) -> int:
    """Return a file's CRC-32; it is read in pieces."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def archive_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with the ending that numpy gives to its archives."""
    return Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")


def save_archive(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], state: Mapping[str, Any]
) -> None:
    """Save arrays and plain values, whole or not at all; ``.npz`` is added if it is missing."""
    dtypes = {name: dtype_name(array.dtype) for name, array in arrays.items()}
    text = json.dumps({**state, "dtypes": dtypes})
    members: dict[str, Any] = {**arrays, STATE: np.frombuffer(text.encode(), np.uint8)}
    replace_file(archive_path(path), lambda file: np.savez(file, **members))


def load_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return what :func:`save_archive` saved.

    Raises:
        FileNotFoundError: there is no such file.
        DecodeError: the file is damaged, or something else.
    """
    try:
        with open(archive_path(path), "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = json.loads(arrays.pop(STATE).tobytes())
        for name, kept in state.pop("dtypes").items():
            # Dtypes that numpy does not know come back as bare bytes.
            dtype = dtype_of(kept)
            arrays[name] = arrays[name].view(dtype) if arrays[name].dtype != dtype else arrays[name]
    except FileNotFoundError:
        raise
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DecodeError(f"{path} is not a saved buffer: {error}") from error
    return arrays, state
