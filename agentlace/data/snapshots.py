"""Snapshots of a store, each of which writes only what came since the one before."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentlace.codec import decode, encode
from agentlace.data.archive import replace_file, sync_folder
from agentlace.data.sampled_store import SampledStore
from agentlace.errors import DecodeError

log = logging.getLogger(__name__)

KIND = "rows"
ARRAYS = "arrays"
"""What belongs to rows but may change long after they came: written anew each time."""
PIECE_BYTES = 8 << 20
"""So much is copied at a time while inserts wait, and then written as one file."""
MERGE_BYTES = PIECE_BYTES // 2
"""A last file that is smaller is replaced by the next snapshot, so that files are not many."""

Segment = dict[str, Any]
"""One file: ``file``, ``nbytes``, ``crc``; if it has rows also ``first``, ``end``, ``settled``."""


class Snapshots:
    """Snapshots of one store in one folder.

    The folder holds files of rows and a manifest that names them. A save writes the rows that
    came since the last one, then replaces the manifest, so that a kill at any moment leaves a
    whole snapshot; the manifest before is kept. Inserts wait for the copy of 8 MiB at most,
    samples for nothing. One save or restore at a time.

    Args:
        folder: made if it is missing; belongs to one store. Without a restore first, a save
            begins anew, and the snapshot that was there is kept as the previous one.
        store: of :mod:`agentlace.data`; the same kind that was saved. Its rows keep their
            numbers, so a restored store with the same capacity gives the same samples.
    """

    def __init__(self, folder: str | os.PathLike[str], store: SampledStore) -> None:
        self._folder = Path(folder)
        self._store = store
        self._segments: list[Segment] = []
        self._manifest = self._folder / "manifest.json"
        self._previous = self._folder / "manifest.previous.json"

    # -- saving ------------------------------------------------------------------------------------

    def save(self, extra: Mapping[str, Any] | None = None) -> int:
        """Save what came since the last snapshot.

        Args:
            extra: plain values to keep with it, such as counters; JSON.

        Returns:
            The bytes that were written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        segments, state, written = list(self._segments), {}, 0
        if segments and segments[-1]["nbytes"] < MERGE_BYTES:
            segments.pop()
        position, target = segments[-1]["settled"] if segments else 0, None
        while target is None or position < target:
            part = self._store.export_rows(position, PIECE_BYTES)
            # What comes while this is being written is left to the next snapshot.
            # A trajectory that is rolled back meanwhile takes its rows with it.
            target = part.newest if target is None else min(target, part.newest)
            state, position = part.state, part.end
            if part.end > part.first:
                segments.append(self._write(part.first, part.end, part.settled, part.columns))
                written += int(segments[-1]["nbytes"])
        segments = [s for s in segments if s["end"] > state["begin"]]
        arrays = self._store.export_arrays()
        files = [] if arrays is None else [self._put(ARRAYS, arrays)]
        written += sum(int(file["nbytes"]) for file in files)
        kind = type(self._store).__name__
        manifest = {"kind": kind, "state": state, "extra": extra or {}, "segments": segments}
        manifest[ARRAYS] = files
        if self._manifest.exists():
            os.replace(self._manifest, self._previous)
        replace_file(self._manifest, lambda file: file.write(json.dumps(manifest).encode()))
        self._segments = segments
        self._sweep()
        return written

    def _write(self, first: int, end: int, settled: int, columns: Any) -> Segment:
        file = self._put(f"{first}-{end}", columns)
        return {**file, "first": first, "end": end, "settled": settled}

    def _put(self, what: str, tree: Any) -> Segment:
        """Write a tree of arrays into a file of its own."""
        frame = encode(tree, KIND)
        crc = 0
        for part in frame.parts:
            crc = zlib.crc32(part, crc)
        name = f"{what}-{crc:08x}.rows"
        replace_file(self._folder / name, lambda file: file.writelines(frame.parts))
        return {"file": name, "nbytes": frame.nbytes, "crc": crc}

    def _sweep(self) -> None:
        """Remove files that neither manifest names."""
        manifests = [_read(path) for path in (self._manifest, self._previous)]
        named = {s["file"] for m in manifests if m is not None for s in _files(m)}
        for path in self._folder.glob("*.rows"):
            if path.name not in named:
                path.unlink()
        sync_folder(self._folder)

    # -- restoring ---------------------------------------------------------------------------------

    def restore(self) -> dict[str, Any] | None:
        """Fill the store, which must be empty, with the newest whole snapshot.

        Returns:
            The ``extra`` that was kept with it; None if there is no snapshot.

        Raises:
            ValueError: the store is not empty, or of another kind than the one saved.
            DecodeError: there are snapshots, but all of them are damaged.
        """
        manifest = self._newest()
        if manifest is None:
            return None
        if self._store.inserted:
            raise ValueError("only an empty store can be restored")
        kind = type(self._store).__name__
        if manifest["kind"] != kind:
            raise ValueError(f"{self._folder} holds a {manifest['kind']}, not a {kind}")
        segments, state = manifest["segments"], manifest["state"]
        self._store.begin_restore(state)
        for segment, after in zip(segments, [*segments[1:], None], strict=False):
            first = max(segment["first"], state["begin"])
            # The next file may have its last rows again, as they became.
            end = segment["end"] if after is None else min(segment["end"], after["first"])
            end = min(end, state["end"])
            if end > first:
                part = slice(first - segment["first"], end - segment["first"])
                self._store.absorb_rows(self._columns(segment), part)
        for file in manifest.get(ARRAYS, ()):
            self._store.absorb_arrays(self._columns(file))
        self._store.end_restore(state)
        self._segments = segments
        extra: dict[str, Any] = manifest["extra"]
        return extra

    def _columns(self, segment: Segment) -> Any:
        content = (self._folder / segment["file"]).read_bytes()
        if zlib.crc32(content) != segment["crc"]:
            raise DecodeError(f"{self._folder / segment['file']} is damaged")
        return decode(bytearray(content), KIND).tree

    def _newest(self) -> dict[str, Any] | None:
        """Return the newest manifest all of whose files are whole."""
        found = False
        for path in (self._manifest, self._previous):
            manifest = _read(path)
            found |= path.exists()
            if manifest is not None and all(map(self._is_whole, _files(manifest))):
                return manifest
            if path.exists():
                log.warning("the snapshot %s is damaged", path)
        if found:
            raise DecodeError(f"all snapshots in {self._folder} are damaged")
        return None

    def _is_whole(self, segment: Segment) -> bool:
        path = self._folder / segment["file"]
        return path.exists() and bool(path.stat().st_size == segment["nbytes"])


def _files(manifest: Mapping[str, Any]) -> list[Segment]:
    """Return all files of a manifest."""
    return [*manifest["segments"], *manifest.get(ARRAYS, ())]


def _read(path: Path) -> dict[str, Any] | None:
    """Return a manifest, None if it is missing or damaged."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        return manifest if {"segments", "state", "kind", "extra"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
