"""Files that a store writes itself: the protocol for stores that are not of this package.

A store that is to be saved in a checkpoint offers two methods::

    def save_to(self, folder: str) -> None:    # writes files into this empty folder
    def load_from(self, folder: str) -> None:  # fills this store, which is empty, from them

``save_to`` is called between two insertions of the trainer: what it writes belongs to exactly
what was inserted. This store's insertions wait until it returns; nothing else does. It may be
called while the store is sampled. Files need no care: they are synced, and checked when they
are read, by the caller.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from agentlace.data.archive import checksum_of, sync_file, sync_folder
from agentlace.data.row_files import Record


def can_save_itself(store: Any) -> bool:
    """Whether a store offers the protocol."""
    return callable(getattr(store, "save_to", None)) and callable(getattr(store, "load_from", None))


class OwnFiles:
    """What one store has written; each time all of it, in a new folder.

    Args:
        folder: made if it is missing; belongs to one store.
        store: with ``save_to`` and ``load_from``.
    """

    def __init__(self, folder: str | os.PathLike[str], store: Any) -> None:
        self.folder = Path(folder)
        self._store = store

    def cut(self) -> str:
        """Let the store write itself; returns the name of the folder."""
        name = f"own-{uuid.uuid4().hex}"
        (self.folder / name).mkdir(parents=True)
        self._store.save_to(str(self.folder / name))
        return name

    def write(self, cut: str) -> tuple[Record, int]:
        """Sync what was written; returns its record and its bytes."""
        files: list[dict[str, Any]] = []
        for path in sorted((self.folder / cut).rglob("*")):
            if path.is_dir():
                sync_folder(path)
                continue
            sync_file(path)
            name = path.relative_to(self.folder).as_posix()
            files.append({"file": name, "nbytes": path.stat().st_size, "crc": checksum_of(path)})
        sync_folder(self.folder / cut)
        sync_folder(self.folder)
        kind = type(self._store).__name__
        record = {"kind": kind, "own": cut, "segments": files}
        return record, sum(file["nbytes"] for file in files)

    def adopt(self, record: Record) -> None:
        """Do nothing: each save writes all."""

    def check(self, record: Record) -> None:
        """Raise ValueError if the store cannot take what a record tells."""
        if len(self._store):
            raise ValueError("only an empty store can be restored")
        kind = type(self._store).__name__
        if record["kind"] != kind:
            raise ValueError(f"{self.folder} holds a {record['kind']}, not a {kind}")

    def fill(self, record: Record) -> None:
        """Let the store, which must be empty, load what a record tells."""
        self.check(record)
        self._store.load_from(str(self.folder / record["own"]))

    def sweep(self, records: list[Record]) -> None:
        """Remove folders that none of the records names."""
        named = {record.get("own") for record in records}
        for path in self.folder.glob("own-*"):
            if path.name not in named:
                shutil.rmtree(path)
