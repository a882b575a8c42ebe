"""Reads a dataset without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from agentlace.rlds.episode import Episode


class DatasetReader:
    """The episodes of one version of an RLDS dataset, whoever wrote it (tfrecord files).

    What it holds is what was committed when it was opened. Nothing is kept in memory but the
    episode at hand.

    Args:
        directory: ``<data_dir>/<name>/<version>``.

    Raises:
        FileNotFoundError: there is no dataset.
        DecodeError: it is damaged, or no RLDS.
        MissingExtra: tensorflow-datasets is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        raise NotImplementedError

    @property
    def splits(self) -> dict[str, int]:
        """Number of episodes by name of the split; agentlace writes ``train`` only."""
        raise NotImplementedError

    @property
    def features(self) -> Any:
        """Features of the dataset."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of episodes."""
        raise NotImplementedError

    def episodes(self, split: str | None = None, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes in their order, with arrays as they were before they were written.

        Images have their leading dimensions again, actions their shape and dtype.

        Args:
            split: one of :attr:`splits`; all if None.
            start: number of the first episode; those before are skipped without decoding.

        Raises:
            DecodeError: a record is damaged; says in which file and where.
        """
        raise NotImplementedError
