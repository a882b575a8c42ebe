"""The files of one dataset, and the order in which they reach the disk."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from agentlace.errors import AlreadyServed, DecodeError, StoreFull
from agentlace.files import replace_file, sync_folder
from agentlace.logs import about
from agentlace.rlds import manifest as manifests
from agentlace.rlds.manifest import Manifest, folder_name, shard_name
from agentlace.rlds.tfrecord import framed

log = logging.getLogger(__name__)

LOCK = ".lock"
FEATURES = "features.json"
GRACE_S = 600.0
"""So long shards stay that were joined: someone who opened the dataset before may still read."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Folder:
    """A dataset's folder.

    ::

        dataset_info.json     the manifest; replacing it is the commit
        features.json         written before the first commit with episodes
        shards-000003/        shards of the current generation, numbered from 0
        .lock                 held by the writer

    Whatever the manifest does not list is not there for anybody: shards with higher numbers and
    generations above the current one are leftovers of a commit that did not happen.

    Args:
        path: of the folder; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)

    def lock(self) -> IO[str]:
        """Return the lock, to be held open as long as the dataset is written.

        Raises:
            AlreadyServed: somebody else has it.
        """
        file = open(self.path / LOCK, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise AlreadyServed(
                f"{self.path} is being written by {owner}: one writer per dataset; stop that one, "
                "or give this one another name or version"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        return file

    def read(self) -> Manifest | None:
        """Return the state of the last commit, None before the first.

        Raises:
            DecodeError: the dataset is damaged, or somebody else's.
        """
        path = self.path / manifests.FILE
        try:
            return Manifest.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except DecodeError as error:
            raise DecodeError(f"{self.path}: {error}") from error

    def check(self, manifest: Manifest) -> None:
        """Compare the shards' files with what the manifest says.

        Raises:
            DecodeError: one is missing, or has another size.
        """
        for number, size in enumerate(manifest.sizes):
            path = self.shard(manifest, number)
            found = path.stat().st_size if path.exists() else None
            if found != size:
                what = "missing" if found is None else f"{found:,} bytes long, not {size:,}"
                raise DecodeError(f"{path} is {what}; `agentlace rlds verify` tells more")

    def generation(self, number: int) -> Path:
        """Return the folder of a generation's shards."""
        return self.path / folder_name(number)

    def make_generation(self, path: Path) -> None:
        """Make the folder of a generation if it is missing."""
        if not path.exists():
            path.mkdir()
            sync_folder(self.path)

    def shard(self, manifest: Manifest, number: int) -> Path:
        """Return the path of one shard."""
        return self.generation(manifest.generation) / shard_name(manifest.name, number)

    def write_shard(self, path: Path, records: Iterable[bytes]) -> int:
        """Write records to a file that appears whole; returns its size."""
        self.make_generation(path.parent)

        def write(file: IO[bytes]) -> None:
            for record in records:
                file.writelines(framed(record))

        return _written(path, write)

    def join_shards(self, paths: list[Path], into: Path, chunks: Copier) -> int:
        """Write one file with the records of several, which stay; returns its size."""

        def write(file: IO[bytes]) -> None:
            for path in paths:
                with open(path, "rb") as part:
                    chunks(part, file)

        return _written(into, write)

    def write_features(self, content: bytes) -> None:
        """Write ``features.json``."""
        replace_file(self.path / FEATURES, lambda file: file.write(content))

    @property
    def has_features(self) -> bool:
        """Whether there is a ``features.json``."""
        return (self.path / FEATURES).exists()

    def commit(self, manifest: Manifest) -> None:
        """Make a state the dataset's; all its files are on the disk.

        Raises:
            OSError: it could not be written; the state before is still the dataset's.
        """
        content = manifest.to_bytes()
        try:
            replace_file(self.path / manifests.FILE, lambda file: file.write(content))
        except OSError as error:
            found = self.read()
            if found is None or found.key != manifest.key:
                raise
            # Only the power may yet undo it.
            fields = about(path=str(self.path), error=error)
            text = "%s was committed, but its folder not synced: %s"
            log.warning(text, self.path, error, extra=fields)

    # -- leftovers ---------------------------------------------------------------------------------

    def sweep(self, manifest: Manifest | None, now: bool = False) -> None:
        """Remove what commits that did not happen left, and generations that are long over.

        Args:
            manifest: the current state.
            now: whether to remove shards that were joined just now, too.
        """
        current = -1 if manifest is None else manifest.generation
        for path in self._leftovers(manifest):
            path.unlink(missing_ok=True)
        for path in self.path.glob("shards-*"):
            number = int(path.name.removeprefix("shards-"))
            # A generation above the current one was never anybody's.
            if number > current or (number < current and (now or _is_long_over(path))):
                shutil.rmtree(path, ignore_errors=True)

    def _leftovers(self, manifest: Manifest | None) -> Iterator[Path]:
        yield from self.path.glob(".*.tmp")
        if manifest is None:
            return
        listed = {shard_name(manifest.name, number) for number in range(len(manifest.sizes))}
        for path in self.generation(manifest.generation).glob("*"):
            if path.name not in listed:
                yield path


Copier = Callable[[IO[bytes], IO[bytes]], None]
"""Copies what is left of one file to another."""


def _written(path: Path, write: Callable[[IO[bytes]], object]) -> int:
    replace_file(path, write)
    return path.stat().st_size


def _is_long_over(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > GRACE_S
    except FileNotFoundError:
        return False


def is_full(error: OSError) -> bool:
    """Whether it is what a full disk, quota or file size limit says."""
    return error.errno in _FULL


@contextmanager
def saying_when_full(path: Path, what: str) -> Iterator[None]:
    """Raise StoreFull for whatever a full disk, quota or file size limit says.

    Args:
        path: of the dataset.
        what: did not happen, and what holds now.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise StoreFull(f"no room for {path} ({error.strerror}): {what}") from error
