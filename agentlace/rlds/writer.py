"""Writes a dataset, commit by commit; a kill at any instant loses and doubles nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, NamedTuple

from agentlace.rlds.episode import Episode

SHARD_BYTES = 128 << 20


class Commit(NamedTuple):
    """What a dataset holds after a commit.

    Attributes:
        number: counts the commits of the dataset, from 1.
        episodes: in the dataset.
        steps: in the dataset, the last ones of episodes included.
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
    commit on ``tfds.builder_from_directory`` can read the dataset at any time. One thread may
    use it; small files are joined in the background.

    Args:
        data_dir: folder of datasets; made if it is missing.
        name: a letter, then letters, digits and underscores.
        version: three numbers, such as "1.0.0".
        features: of the episodes; None learns them from the first. A dataset that exists has
            its own, which must be the same.
        image_format: ``png`` or ``jpeg`` (lossy); of a new dataset whose features are learned.
        shard_bytes: files are joined up to this size.
        join_after: so many small files are joined into few. 0 never joins them.
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
        features: Any = None,
        image_format: Literal["png", "jpeg"] = "png",
        shard_bytes: int = SHARD_BYTES,
        join_after: int = 64,
        threads: int | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def directory(self) -> str:
        """Folder of this version of the dataset."""
        raise NotImplementedError

    @property
    def features(self) -> Any:
        """Features of the dataset; None before the first episode of a new one."""
        raise NotImplementedError

    @property
    def cursor(self) -> dict[str, Any] | None:
        """The cursor of the last commit, of whatever process; None before the first."""
        raise NotImplementedError

    @property
    def episodes(self) -> int:
        """Committed episodes, those of earlier processes included."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Committed steps; an episode of N transitions has N+1."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the committed records."""
        raise NotImplementedError

    @property
    def pending(self) -> int:
        """Episodes that were appended and wait for the commit."""
        raise NotImplementedError

    @property
    def pending_nbytes(self) -> int:
        """Bytes of the episodes that wait for the commit."""
        raise NotImplementedError

    def append(self, episode: Episode) -> None:
        """Encode an episode, which then waits for the next commit.

        Raises:
            SchemaMismatch: it does not fit the features; nothing of it was kept, and the
                writer goes on.
            Closed: after :meth:`close`.
        """
        raise NotImplementedError

    def commit(self, cursor: Mapping[str, Any] | None = None) -> Commit:
        """Make the appended episodes and the cursor part of the dataset, in one step.

        Blocks until both are on the disk. Does nothing if there is nothing new.

        Args:
            cursor: plain values (JSON) that tell how far their source was read; None keeps the
                one before.

        Raises:
            StoreFull: the disk is full. The dataset is as before, the episodes still wait, and
                the commit may be tried again.
            Closed: after :meth:`close`.
        """
        raise NotImplementedError

    def join(self) -> None:
        """Join small files now, and wait until that is done."""
        raise NotImplementedError

    def close(self) -> None:
        """Let another process write. Episodes that were not committed are dropped; see the log."""
        raise NotImplementedError

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
