"""Snapshots of a store, each of which writes only what came since the one before."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentlace.data.archive import replace_file, sync_folder
from agentlace.data.row_files import Record, RowFiles
from agentlace.data.sampled_store import SampledStore
from agentlace.errors import DecodeError
from agentlace.logs import about

log = logging.getLogger(__name__)


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
        self._rows = RowFiles(folder, store)
        self._manifest = self._folder / "manifest.json"
        self._previous = self._folder / "manifest.previous.json"

    def save(self, extra: Mapping[str, Any] | None = None) -> int:
        """Save what came since the last snapshot, up to this call.

        Args:
            extra: plain values to keep with it, such as counters; JSON.

        Returns:
            The bytes that were written.
        """
        record, written = self._rows.write(self._rows.cut())
        manifest = {**record, "extra": extra or {}}
        if self._manifest.exists():
            os.replace(self._manifest, self._previous)
        replace_file(self._manifest, lambda file: file.write(json.dumps(manifest).encode()))
        self._rows.adopt(record)
        manifests = [_read(path) for path in (self._manifest, self._previous)]
        self._rows.sweep([manifest for manifest in manifests if manifest is not None])
        sync_folder(self._folder)
        return written

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
        self._rows.fill(manifest)
        extra: dict[str, Any] = manifest["extra"]
        return extra

    def _newest(self) -> Record | None:
        """Return the newest manifest all of whose files are whole."""
        found = False
        for path in (self._manifest, self._previous):
            manifest = _read(path)
            found |= path.exists()
            if manifest is not None and self._rows.is_whole(manifest):
                return manifest
            if path.exists():
                log.warning("the snapshot %s is damaged", path, extra=about(path=str(path)))
        if found:
            raise DecodeError(f"all snapshots in {self._folder} are damaged")
        return None


def _read(path: Path) -> Record | None:
    """Return a manifest, None if it is missing or damaged."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        return manifest if {"segments", "state", "kind", "extra"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
