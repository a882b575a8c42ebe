"""The manifest of a checkpoint: the one file that makes a folder of files a checkpoint.

::

    checkpoint.json            the newest checkpoint's manifest; replaced as a whole
    checkpoint.previous.json   the one before
    store-<name>/              files of one store: rows, or what the store itself wrote
    extra-<id>-<i>.frame       what the program gave as ``extra``

Files are written, synced and renamed before the manifest that names them; a file that neither
manifest names is removed afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from agentlace.data.archive import checksum_of, replace_file, sync_folder
from agentlace.data.row_files import Record, files_of
from agentlace.errors import CheckpointError, DecodeError
from agentlace.progress import Logged
from agentlace.transport.streams import StreamId
from agentlace.transport.weights import Version

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

FORMAT = "agentlace checkpoint"
FORMAT_VERSION = 1
LOCK_TIMEOUT_S = 10.0
LOCK_POLL_S = 0.02
Positions = Mapping[str, StreamId]


@dataclass(frozen=True)
class SavedStore:
    """One store of a checkpoint.

    Attributes:
        record: tells its files.
        positions: the last applied ID per actor, exactly as far as its content goes.
        counters: of its consumer at this moment.
    """

    record: Record
    positions: Positions
    counters: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        id: unique.
        service: whose streams the positions belong to.
        saved_s: when it was saved, in seconds since 1970 by the saver's clock; for people.
        weights: the version of the network that was published last.
        stores: by name.
        extra: the files of what the program gave; None if it gave nothing.
        is_split: whether these files hold the entries of a dict.
    """

    id: str
    service: str
    saved_s: float
    weights: Version
    stores: dict[str, SavedStore]
    extra: list[dict[str, Any]] | None
    is_split: bool

    def encode(self) -> bytes:
        """Return the manifest as JSON that tells whether it is whole."""
        content = asdict(self)
        for saved in content["stores"].values():
            saved["positions"] = {a: str(StreamId(*p)) for a, p in saved["positions"].items()}
        text = json.dumps(content)
        head = {"format": FORMAT, "version": FORMAT_VERSION, "crc": zlib.crc32(text.encode())}
        return json.dumps({**head, "content": text}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Return what :meth:`encode` made.

        Raises:
            ValueError: it is damaged, of a later format, or something else.
        """
        head = json.loads(data)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError("it is no checkpoint's manifest")
        if head.get("version") != FORMAT_VERSION:
            raise ValueError(f"its format has version {head.get('version')}, not {FORMAT_VERSION}")
        text = head["content"]
        if zlib.crc32(text.encode()) != head["crc"]:
            raise ValueError("its checksum is wrong")
        content = json.loads(text)
        stores = {name: _saved_store(**saved) for name, saved in content.pop("stores").items()}
        weights = Version(*content.pop("weights"))
        return cls(stores=stores, weights=weights, **content)


def _saved_store(record: Record, positions: dict[str, str], counters: dict[str, int]) -> SavedStore:
    at = {actor: StreamId.parse(text.encode()) for actor, text in positions.items()}
    return SavedStore(record, at, counters)


class CheckpointFolder:
    """The folder of one checkpoint and its previous one.

    It has one writer, which has begun it or has read what is there: whoever has not, or was
    overtaken by another process meanwhile, may not write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._known: bytes | None = None
        self._goes_on_from_previous = False
        self._newest = self.path / "checkpoint.json"
        self._previous = self.path / "checkpoint.previous.json"

    def of_store(self, name: str) -> Path:
        """Return the folder of one store's files."""
        return self.path / f"store-{quote(name, safe='')}"

    def read(self, previous: bool = False) -> Manifest | None:
        """Return the newest checkpoint's manifest, or the one before; None if there is none.

        Raises:
            CheckpointError: it is damaged, or something else.
        """
        if not previous and not self._newest.exists():
            previous = True  # the process ended between two renames
        path = self._previous if previous else self._newest
        try:
            return Manifest.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
            raise CheckpointError(
                self.path,
                f"{path.name} cannot be read ({error}); {self._way_back(previous)}",
            ) from error

    def _way_back(self, previous: bool) -> str:
        if not previous and self._previous.exists():
            return "restore(previous=True) takes the one before it"
        return "there is none before it"

    def verify(self, manifest: Manifest, previous: bool = False) -> None:
        """Read all files of a checkpoint and compare their checksums.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        files = list(self._files(manifest))
        nbytes = sum(file["nbytes"] for _, file in files)
        progress = Logged(log, f"checking {self.path}", nbytes, "MB", 1e6, logging.WARNING)
        for path, file in files:
            problem = ""
            if not path.resolve().is_relative_to(self.path.resolve()):
                problem = "is outside of the folder"
            elif not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != file["nbytes"]:
                problem = f"has {path.stat().st_size} bytes instead of {file['nbytes']}"
            elif checksum_of(path) != file["crc"]:
                problem = "has other content than was saved"
            if problem:
                name = path.relative_to(self.path)
                reason = f"{name} {problem}; {self._way_back(previous)}"
                raise CheckpointError(self.path, reason)
            progress(file["nbytes"])

    def _files(self, manifest: Manifest) -> Iterator[tuple[Path, dict[str, Any]]]:
        for name, saved in manifest.stores.items():
            for file in files_of(saved.record):
                yield self.of_store(name) / file["file"], file
        for file in manifest.extra or ():
            yield self.path / file["file"], file

    def go_on(self, previous: bool = False) -> None:
        """Take note that what is there was restored, and what is saved comes after it."""
        self._known = self._content()
        self._goes_on_from_previous = previous

    def check_mine(self) -> None:
        """Refuse to write over what this process has neither saved nor restored.

        Raises:
            CheckpointError: there is such a checkpoint.
        """
        if self._content() != self._known:
            raise CheckpointError(
                self.path,
                "it was saved by another process and not restored by this one: restore() it, use "
                "another path, or move it away to begin anew",
            )

    def _content(self) -> bytes | None:
        for path in (self._newest, self._previous):
            if path.exists():
                return path.read_bytes()
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from replacing the manifest, where the system can.

        Raises:
            CheckpointError: another one is at it after LOCK_TIMEOUT_S.
        """
        if fcntl is None or not self.path.is_dir():
            yield
            return
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        with open(self.path / ".lock", "ab") as file:
            while not self._is_locked(file):
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        self.path,
                        "another process is about to save here and does not get on: end it",
                    )
                threading.Event().wait(LOCK_POLL_S)
            yield  # the lock goes with the file, also if the process is killed

    def _is_locked(self, file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # a file system without locks
            log.debug("%s is not locked: %s", self.path, error)
        return True

    def commit(self, manifest: Manifest) -> None:
        """Make a manifest, all of whose files are there, the newest one.

        Raises:
            CheckpointError: another process has saved here meanwhile.
        """
        sync_folder(self.path)
        self.check_mine()
        content = manifest.encode()
        if self._newest.exists() and not self._goes_on_from_previous:
            os.replace(self._newest, self._previous)
        try:
            replace_file(self._newest, lambda file: file.write(content))
        finally:
            self._known = self._content()
        self._goes_on_from_previous = False

    def kept(self) -> list[Manifest]:
        """Return all manifests that are there and can be read."""
        kept = []
        for previous in (False, True):
            try:
                manifest = self.read(previous)
            except CheckpointError:
                continue
            if manifest is not None:
                kept.append(manifest)
        return kept
