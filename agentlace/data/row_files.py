"""Files of a store's rows, of which a save writes only what came since the one before."""

from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path
from typing import Any

from agentlace.codec import decode, encode
from agentlace.data.archive import remove_unfinished, replace_file
from agentlace.data.sampled_store import Part, SampledStore
from agentlace.errors import DecodeError
from agentlace.progress import Logged

log = logging.getLogger(__name__)

KIND = "rows"
PIECE_BYTES = 8 << 20
"""So much is copied at a time while inserts wait, and then written as one file."""
MERGE_BYTES = PIECE_BYTES // 2
"""Last files that are smaller are replaced by the next save, so that files are not many."""
BEGINNING = ("begin", "trajectory_id")
"""What of a store's state tells about its first row, which may be overwritten meanwhile."""

ARRAYS = "arrays"
"""What belongs to rows but may change long after they came: written anew each time."""

Segment = dict[str, Any]
"""One file: ``file``, ``nbytes``, ``crc``; if it has rows also ``first``, ``end``, ``settled``."""
Record = dict[str, Any]
"""What brings a store back: its ``kind``, ``state``, ``segments`` and ``arrays``; JSON."""


class RowFiles:
    """The files of one store in one folder; which of them make it up is told by a record.

    Args:
        folder: made if it is missing; belongs to one store.
        store: of :mod:`agentlace.data`.
    """

    def __init__(self, folder: str | os.PathLike[str], store: SampledStore) -> None:
        self.folder = Path(folder)
        self._store = store
        self._segments: list[Segment] = []

    def cut(self) -> Part:
        """Fix the moment that :meth:`write` then saves. Inserts wait for microseconds."""
        return self._store.cut()

    def write(self, cut: Part) -> tuple[Record, int]:
        """Write the store as it was at a cut; returns its record and the bytes written.

        Inserts wait for the copy of 8 MiB at a time, samples for nothing. Rows that they
        overwrite meanwhile are missing at the beginning.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        segments, new = list(self._segments), []
        while segments and segments[-1]["nbytes"] < MERGE_BYTES:
            segments.pop()
        position, newest = segments[-1]["settled"] if segments else 0, cut
        progress = Logged(log, f"writing {self.folder}", cut.first - position, "rows")
        while position < cut.first:
            part = newest = self._store.export_rows(position, PIECE_BYTES, cut.first)
            progress(part.end - position)
            position = part.end
            if part.end > part.first:
                new.append(self._write(part, part.end))
        if cut.end > cut.first:
            new.append(self._write(cut, cut.first))
        first = {key: newest.state[key] for key in BEGINNING if key in newest.state}
        state = {**cut.state, **first}
        state["begin"] = min(state["begin"], state["end"])
        segments = [s for s in [*segments, *new] if s["end"] > state["begin"]]
        arrays = [] if cut.arrays is None else [self._put(ARRAYS, cut.arrays)]
        kind = type(self._store).__name__
        record = {"kind": kind, "state": state, "segments": segments, ARRAYS: arrays}
        return record, sum(int(file["nbytes"]) for file in [*new, *arrays])

    def _write(self, part: Part, settled: int) -> Segment:
        file = self._put(f"{part.first}-{part.end}", part.columns)
        return {**file, "first": part.first, "end": part.end, "settled": settled}

    def _put(self, what: str, tree: Any) -> Segment:
        """Write a tree of arrays into a file of its own."""
        frame = encode(tree, KIND)
        crc = 0
        for part in frame.parts:
            crc = zlib.crc32(part, crc)
        name = f"{what}-{crc:08x}.rows"
        replace_file(self.folder / name, lambda file: file.writelines(frame.parts))
        return {"file": name, "nbytes": frame.nbytes, "crc": crc}

    def adopt(self, record: Record) -> None:
        """Take a record's files for the ones that the next save adds to: it is kept now."""
        self._segments = record["segments"]

    def fill(self, record: Record) -> None:
        """Fill the store, which must be empty, with what a record tells.

        Raises:
            ValueError: the store is not empty, or of another kind than the one saved.
            DecodeError: a file is damaged.
        """
        self.check(record)
        segments, state = record["segments"], record["state"]
        nbytes = sum(int(file["nbytes"]) for file in files_of(record))
        progress = Logged(log, f"reading {self.folder}", nbytes, "MB", 1e6, logging.WARNING)
        self._store.begin_restore(state)
        for segment, after in zip(segments, [*segments[1:], None], strict=False):
            first = max(segment["first"], state["begin"])
            # The next file may have its last rows again, as they became.
            end = segment["end"] if after is None else min(segment["end"], after["first"])
            end = min(end, state["end"])
            if end > first:
                part = slice(first - segment["first"], end - segment["first"])
                self._store.absorb_rows(self._columns(segment), part)
            progress(segment["nbytes"])
        for file in record.get(ARRAYS, ()):
            self._store.absorb_arrays(self._columns(file))
        self._store.end_restore(state)
        self.adopt(record)

    def check(self, record: Record) -> None:
        """Raise ValueError if the store cannot take what a record tells."""
        if self._store.inserted:
            raise ValueError("only an empty store can be restored")
        kind = type(self._store).__name__
        if record["kind"] != kind:
            raise ValueError(f"{self.folder} holds a {record['kind']}, not a {kind}")

    def _columns(self, segment: Segment) -> Any:
        content = (self.folder / segment["file"]).read_bytes()
        if zlib.crc32(content) != segment["crc"]:
            raise DecodeError(f"{self.folder / segment['file']} is damaged")
        return decode(bytearray(content), KIND).tree

    def is_whole(self, record: Record) -> bool:
        """Whether all files of a record are there in their full size."""
        return all(map(self._is_there, files_of(record)))

    def _is_there(self, segment: Segment) -> bool:
        path = self.folder / segment["file"]
        return path.exists() and bool(path.stat().st_size == segment["nbytes"])

    def sweep(self, records: list[Record]) -> None:
        """Remove files that none of the records names, and those that were never finished."""
        named = {file["file"] for record in records for file in files_of(record)}
        for path in self.folder.glob("*.rows"):
            if path.name not in named:
                path.unlink()
        remove_unfinished(self.folder)


def files_of(record: Record) -> list[Segment]:
    """Return all files of a record."""
    return [*record["segments"], *record.get(ARRAYS, ())]
