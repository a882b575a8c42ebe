"""Writes a dataset, commit by commit; a kill at any instant loses and doubles nothing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple

from agentlace.codec.images import load_cv2
from agentlace.errors import Closed, DecodeError, StoreFull
from agentlace.rlds.episode import Episode
from agentlace.rlds.features import Features
from agentlace.rlds.folder import Folder, is_full, saying_when_full
from agentlace.rlds.images import ImageFormat
from agentlace.rlds.joining import Joiner
from agentlace.rlds.manifest import Manifest
from agentlace.rlds.records import encode_episode
from agentlace.rlds.settings import check_settings
from agentlace.rlds.target import Target
from agentlace.rlds.tfds import features_file, load_tfds
from agentlace.rlds.tfrecord import framed_nbytes

log = logging.getLogger(__name__)

SHARD_NBYTES = 128 << 20
JOIN_AFTER = 64
MAX_SHARDS = 99_999
"""TFDS writes five digits, and more for all shards if there are more."""


class Commit(NamedTuple):
    """What a dataset holds after a commit.

    Attributes:
        number: counts the commits of the dataset, from 1.
        episodes: in the dataset.
        steps: in the dataset; an episode of N transitions has N+1.
        nbytes: of the dataset's records.
    """

    number: int
    episodes: int
    steps: int
    nbytes: int


class DatasetWriter:
    """Appends episodes to ``<data_dir>/<name>/<version>/``, which it makes or goes on with.

    Episodes are encoded when they are appended, wait in memory, and become part of the dataset
    with the next :meth:`commit`, all of them or none, together with the cursor. From the first
    commit with an episode on ``tfds.builder_from_directory`` can read the dataset at any time.
    One thread may use it; small files are joined in the background.

    Args:
        data_dir: folder of datasets; made if it is missing.
        name: a letter, then letters, digits and underscores.
        version: three numbers, such as "1.0.0".
        features: of the episodes; None learns them from the first. A dataset that exists has
            its own, which these must agree with.
        image_format: ``png`` or ``jpeg`` (lossy); of a new dataset whose features are learned.
        shard_nbytes: files are joined until they have so many bytes.
        join_after: so many small files, 2 or more, are joined into few.
        shard_episodes: a file gets no more episodes than these; None for any number.
        in_place: whether ``data_dir`` is the folder of this version itself.
        threads: that encode images; None for one a core.

    Raises:
        AlreadyServed: another writer, of whatever process, has this dataset open.
        SchemaMismatch: ``features`` are not those of the dataset.
        DecodeError: the folder holds something else, or a damaged dataset.
        MissingExtra: tensorflow-datasets or OpenCV is not installed.
        BadSetting: no such name, version, format or size.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        name: str,
        version: str = "1.0.0",
        *,
        features: Features | None = None,
        image_format: ImageFormat = "png",
        shard_nbytes: int = SHARD_NBYTES,
        join_after: int = JOIN_AFTER,
        shard_episodes: int | None = None,
        in_place: bool = False,
        threads: int | None = None,
    ) -> None:
        target = Target(shard_nbytes, shard_episodes)
        check_settings(name, version, image_format, target, join_after)
        load_cv2("rlds")
        load_tfds()
        self._image_format = image_format
        self._target = target
        path = Path(data_dir).expanduser()
        self._folder = Folder(path if in_place else path / name / version)
        self._held = self._folder.lock()
        try:
            self._manifest = self._open(name, version)
            self._features = self._agreed(features)
        except BaseException:
            self._held.close()
            raise
        self._pending: list[tuple[bytes, int]] = []
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(threads or os.cpu_count(), "agentlace-rlds-encode")
        self._joiner = Joiner(
            self._folder, self._lock, self._state, self._adopt, target, join_after
        )
        self._closed = False

    def _open(self, name: str, version: str) -> Manifest:
        """Return the state of the last commit, and remove what came of none."""
        manifest = self._folder.read()
        if manifest is None:
            self._folder.sweep(None)
            return Manifest(name, version)
        if (manifest.name, manifest.version) != (name, version):
            found = f"{manifest.name} {manifest.version}"
            raise DecodeError(f"{self._folder.path} holds the dataset {found}: was it renamed?")
        self._folder.check(manifest)
        self._folder.sweep(manifest)
        return manifest

    def _agreed(self, given: Features | None) -> Features | None:
        known = self._manifest.features
        if known is not None and given is not None:
            given.check_same(known)
        return known or given

    def _state(self) -> Manifest:
        return self._manifest

    def _adopt(self, manifest: Manifest) -> None:
        self._manifest = manifest

    @property
    def directory(self) -> Path:
        """Folder of this version of the dataset."""
        return self._folder.path

    @property
    def features(self) -> Features | None:
        """Features of the dataset; None before the first episode, if none were given."""
        return self._features

    @property
    def cursor(self) -> dict[str, Any] | None:
        """The cursor of the last commit, of whatever process; None before the first."""
        return self._manifest.cursor

    @property
    def episodes(self) -> int:
        """Committed episodes, those of earlier processes included."""
        return self._manifest.episodes

    @property
    def steps(self) -> int:
        """Committed steps; an episode of N transitions has N+1."""
        return self._manifest.steps

    @property
    def nbytes(self) -> int:
        """Bytes of the committed records."""
        return self._manifest.nbytes

    @property
    def pending(self) -> int:
        """Episodes that were appended and wait for the commit."""
        return len(self._pending)

    @property
    def pending_nbytes(self) -> int:
        """Bytes of the episodes that wait for the commit."""
        return sum(len(record) for record, _ in self._pending)

    def append(self, episode: Episode) -> None:
        """Encode an episode, which then waits for the next commit.

        Raises:
            SchemaMismatch: it does not fit the features; nothing of it was kept, and the
                writer goes on.
            Closed: after :meth:`close`.
        """
        self._check_open()
        known = self._features or Features({}, {}, self._image_format, is_complete=False)
        features = known.completed(episode)
        record = encode_episode(features, episode, self._threads)
        self._features = features
        self._pending.append((record, len(episode)))

    def commit(self, cursor: Mapping[str, Any] | None = None) -> Commit:
        """Make the appended episodes and the cursor part of the dataset, in one step.

        Blocks until both are on the disk. Does nothing if there is nothing new.

        Args:
            cursor: plain values (JSON) that tell how far their source was read; None keeps the
                one before.

        Raises:
            StoreFull: the disk is full. The dataset is as before, the episodes still wait, and
                the commit may be tried again.
            TypeError: the cursor has values that JSON does not know.
            Closed: after :meth:`close`.
        """
        self._check_open()
        plain = self.cursor if cursor is None else json.loads(json.dumps(cursor))
        if self._pending or plain != self.cursor:
            waits = f"{len(self._pending)} episodes wait and are in no file; make room and commit"
            with self._lock, saying_when_full(self.directory, f"{waits} again"):
                self._commit_making_room(plain)
            self._joiner.consider()
        now = self._manifest
        return Commit(now.number, now.episodes, now.steps, now.nbytes)

    def _commit_making_room(self, cursor: dict[str, Any] | None) -> None:
        """Commit; if the disk is full, remove files that were joined and are kept for readers."""
        try:
            self._commit(cursor)
        except OSError as error:
            if not is_full(error):
                raise
            self._folder.sweep(self._manifest, now=True)
            self._commit(cursor)

    def _commit(self, cursor: dict[str, Any] | None) -> None:
        now = self._manifest
        new = replace(now, number=now.number + 1, cursor=cursor)
        if self._pending:
            new = replace(new, features=self._features)
            if now.features is None or not self._folder.has_features:
                assert self._features is not None, "learned by append"
                self._folder.write_features(features_file(self._features))
        at, sizes = 0, [framed_nbytes(record) for record, _ in self._pending]
        for count in self._target.groups(sizes, [1] * len(sizes)):
            part = self._pending[at : at + count]
            at += count
            new = self._with_shard(new, part) if part else new
        self._folder.commit(new)
        self._manifest = new
        self._pending.clear()

    def _with_shard(self, manifest: Manifest, part: list[tuple[bytes, int]]) -> Manifest:
        number = len(manifest.lengths)
        if number == MAX_SHARDS:
            raise StoreFull(f"{self.directory} has {number:,} files: begin a new version")
        path = self._folder.shard(manifest, number)
        size = self._folder.write_shard(path, (record for record, _ in part))
        return replace(
            manifest,
            lengths=(*manifest.lengths, len(part)),
            sizes=(*manifest.sizes, size),
            nbytes=manifest.nbytes + sum(len(record) for record, _ in part),
            steps=manifest.steps + sum(steps for _, steps in part),
        )

    def join(self) -> None:
        """Join all small files now, and wait until that is done.

        Raises:
            StoreFull: the disk is full; the dataset is as before.
        """
        self._check_open()
        self._joiner.wait()
        with saying_when_full(self.directory, "the small files were not joined"):
            self._joiner.join()

    def close(self) -> None:
        """Let another process write. What was not committed is dropped, with a warning."""
        if self._closed:
            return
        self._closed = True
        if self._pending:
            log.warning(
                "%s is closed: %d episodes that were not committed are dropped",
                self.directory,
                len(self._pending),
            )
        self._joiner.stop()
        self._threads.shutdown()
        self._folder.sweep(self._manifest)
        self._held.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the dataset {self.directory} is closed")

    def __enter__(self) -> DatasetWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; does not commit, since only the caller knows the cursor."""
        self.close()
