"""Records episodes in the process that has them, as an RLDS dataset."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from enum import IntEnum
from threading import Lock
from typing import Any

import numpy as np

from agentlace.data.columns import map_leaves
from agentlace.errors import Closed, SchemaMismatch
from agentlace.forks import check_process, freed_by_fork, process_number
from agentlace.rlds.episode import (
    STATE,
    WRITTEN_AS,
    Ending,
    Episode,
    as_dicts,
    episode_from_transitions,
)
from agentlace.rlds.features import Features
from agentlace.rlds.writer import DatasetWriter

__all__ = ["RLDSWriter", "StepType"]

ENDS = ("is_terminal", "is_last", "end_of_trajectory")
"""Entries of a step that say that it is the last one of its episode."""


class StepType(IntEnum):
    """What a step of an environment is; the numbers are those that RLDS loggers use."""

    RESTART = 0
    TRANSITION = 1
    TRUNCATION = 2
    TERMINATION = 3


class RLDSWriter:
    """Writes RLDS steps, or transitions, as a dataset. Thread-safe.

    Each episode is on the disk when the call that ends it returns; a kill loses no more than
    the episodes that are open. Small files are joined in the background. A dataset that exists
    goes on.

    Called with a step, a dict of ``observation``, ``action``, and optionally ``reward``,
    ``discount``, ``is_first``, ``is_last``, ``is_terminal`` and further keys, it adds that step
    as it is; ``is_last``, ``is_terminal`` or ``end_of_trajectory`` ends the episode.

    Args:
        dataset_name: a letter, then letters, digits and underscores.
        data_spec: ``{"observation": …, "action": …}``, a nested dict of whatever has a shape
            and a dtype (Gymnasium spaces, TensorFlow's or JAX' specs, arrays); None learns from
            the first episode.
        data_directory: folder of this dataset alone. Loaders that look a dataset up by its name
            want it to be called ``<name>/<version>``.
        version: three numbers, such as "1.0.0".
        max_episodes_per_file: a file gets no more.

    Raises:
        AlreadyServed: another writer has this dataset open.
        SchemaMismatch: the dataset exists, and has other shapes or dtypes.
        DecodeError: the folder holds something else, or a damaged dataset.
        MissingExtra: ``agentlace[rlds]`` is not installed.
        BadSetting: no such name or version.
    """

    def __init__(
        self,
        dataset_name: str,
        data_spec: Any,
        data_directory: str | os.PathLike[str],
        version: str,
        *,
        max_episodes_per_file: int = 1000,
    ) -> None:
        self._writer = DatasetWriter(
            data_directory,
            dataset_name,
            version,
            features=None if data_spec is None else _features(data_spec),
            shard_episodes=max_episodes_per_file,
            in_place=True,
        )
        self._steps: list[dict[str, Any]] = []
        self._rows: dict[Hashable, list[Mapping[str, Any]]] = {}
        self._lock = freed_by_fork(Lock())
        self._made_in = process_number()
        self._closed = False

    def __call__(self, data: Mapping[str, Any]) -> None:
        """Add a step; writes the episode if it is the last one.

        Args:
            data: the step; it is copied. Arrays may be TensorFlow's.

        Raises:
            SchemaMismatch: the episode does not fit the dataset; it is dropped.
            StoreFull: the disk is full; the episode waits, and goes with the next.
            Closed: after :meth:`close`.
        """
        with self._lock:
            self._check_open()
            step = map_leaves(_copied, as_dicts(data))
            ends = [key for key in ENDS if np.any(step.pop(key, False))]
            self._steps.append(step)
            if ends:
                self._write_steps("terminated" if "is_terminal" in ends else "truncated")

    def add_transition(
        self, row: Mapping[str, Any], ending: Ending | None = None, source: Hashable = None
    ) -> None:
        """Add a transition; writes the episode if this is its last one.

        Args:
            row: as :func:`~agentlace.rlds.episode.episode_from_transitions` takes it; it is
                copied.
            ending: how the episode ends with it; None if it goes on.
            source: of the episode; those of several sources may be open at the same time.

        Raises:
            SchemaMismatch: the episode does not fit the dataset; it is dropped.
            StoreFull: the disk is full; the episode waits, and goes with the next.
            Closed: after :meth:`close`.
        """
        with self._lock:
            self._check_open()
            self._rows.setdefault(source, []).append(map_leaves(_copied, row))
            if ending is not None:
                self._write_rows(source, ending)

    def end_episode(self, ending: Ending, source: Hashable = None) -> None:
        """Write a source's open episode, if there is one; errors as :meth:`add_transition`."""
        with self._lock:
            self._check_open()
            self._write_rows(source, ending)

    def flush(self) -> None:
        """Write all open episodes, as aborted ones."""
        with self._lock:
            self._check_open()
            self._flush()

    def close(self) -> None:
        """Write what is open, as aborted episodes, and let others write the dataset."""
        with self._lock:
            if self._closed or self._made_in != process_number():
                return
            self._closed = True
            try:
                self._flush()
            finally:
                self._writer.close()

    def _flush(self) -> None:
        if self._steps:
            self._write_steps("aborted")
        for source in list(self._rows):
            self._write_rows(source, "aborted")

    def _write_steps(self, ending: Ending) -> None:
        steps, self._steps = self._steps, []
        is_bare = not isinstance(steps[0].get("observation"), dict)
        last = len(steps) - 1
        whole = [
            {
                **step,
                "observation": {STATE: step["observation"]} if is_bare else step["observation"],
                "reward": np.float32(step.get("reward", 0)),
                "discount": np.float32(step.get("discount", 1)),
                "is_first": number == 0,
                "is_last": number == last,
                "is_terminal": number == last and ending == "terminated",
            }
            for number, step in enumerate(steps)
        ]
        # Only their author knows whether the last action is one.
        self._write(Episode(whole, ending, {WRITTEN_AS: "steps"}, is_bare))

    def _write_rows(self, source: Hashable, ending: Ending) -> None:
        rows = self._rows.pop(source, [])
        if rows:
            self._write(episode_from_transitions(rows, ending))

    def _write(self, episode: Episode) -> None:
        self._writer.append(episode)
        self._writer.commit()

    def __enter__(self) -> RLDSWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close; what is open is written as aborted episodes."""
        self.close()

    def _check_open(self) -> None:
        check_process(self._made_in, f"the writer of the dataset {self._writer.directory}")
        if self._closed:
            raise Closed(f"the dataset {self._writer.directory} is closed")


def _features(data_spec: Any) -> Features:
    for key in ("observation", "action"):
        if key not in data_spec:
            raise SchemaMismatch(key, "missing from data_spec")
    return Features.from_spaces(data_spec["observation"], data_spec["action"])


def _copied(leaf: Any) -> Any:
    """Return a leaf that its author may not change any more; text and numbers never change."""
    return leaf if isinstance(leaf, str | bytes | bool | int | float) else np.array(leaf)
