"""Reads a dataset without TensorFlow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agentlace.errors import DecodeError
from agentlace.rlds import manifest as manifests
from agentlace.rlds.episode import ENDINGS, STEP_KEYS, Ending, Episode
from agentlace.rlds.features import ENDING, OTHER, Features
from agentlace.rlds.leaf import flat, nested
from agentlace.rlds.manifest import Manifest
from agentlace.rlds.tfds import load_tfds
from agentlace.rlds.tfrecord import read_records


class Shard(NamedTuple):
    """One file of records.

    Attributes:
        split: that it belongs to.
        path: of the file.
        length: number of its records, each an episode.
    """

    split: str
    path: Path
    length: int


class DatasetReader:
    """The episodes of one version of an RLDS dataset, whoever wrote it (tfrecord files).

    It holds what was committed when it was opened, and keeps no more than one episode in
    memory. A writer may go on meanwhile, and may join files.

    Args:
        directory: ``<data_dir>/<name>/<version>``.
        threads: that decode images; None for one a core.

    Raises:
        FileNotFoundError: there is no dataset.
        DecodeError: it is damaged, or not RLDS in tfrecord files.
        MissingExtra: tensorflow-datasets is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], threads: int | None = None) -> None:
        self.directory = Path(directory).expanduser()
        self._threads = threads or os.cpu_count() or 1
        if not (self.directory / manifests.FILE).exists():
            hint = "name the folder of a version, such as data/my_dataset/1.0.0"
            raise FileNotFoundError(f"no dataset in {self.directory}: {hint}")
        self.manifest = _manifest_of(self.directory)
        """What agentlace wrote beside it; None for a dataset of others."""
        if self.manifest is not None and self.manifest.features is None:
            raise FileNotFoundError(f"the dataset {self.directory} has no episodes yet")
        self._info = self._load()

    def _load(self) -> Any:
        try:
            info = load_tfds().builder_from_directory(os.fspath(self.directory)).info
        except (OSError, ImportError):
            raise
        except Exception as error:  # whatever TFDS says about files that are damaged
            reason = f"{type(error).__name__}: {error}"
            raise DecodeError(f"TFDS cannot read {self.directory}: {reason}") from error
        if info.file_format is not None and info.file_format.file_suffix != "tfrecord":
            format = info.file_format.file_suffix
            raise DecodeError(f"{self.directory} has {format} files: only tfrecord is read here")
        if "steps" not in info.features:
            raise DecodeError(f"{self.directory} is no RLDS: its examples have no steps")
        return info

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self._info.name)

    @property
    def version(self) -> str:
        """Version of the dataset."""
        return str(self._info.version)

    @property
    def features(self) -> Any:
        """Features of the dataset, a ``tfds.features.FeaturesDict``."""
        return self._info.features

    @property
    def shards(self) -> list[Shard]:
        """The files, in their order."""
        return [
            Shard(str(name), Path(os.fspath(path)), int(length))
            for name, split in self._info.splits.items()
            for path, length in zip(split.filepaths, split.shard_lengths, strict=True)
        ]

    @property
    def splits(self) -> dict[str, int]:
        """Number of episodes by name of the split; agentlace writes ``train`` only."""
        return {str(name): int(s.num_examples) for name, s in self._info.splits.items()}

    def __len__(self) -> int:
        """Return the number of episodes."""
        return sum(self.splits.values())

    def records(self, split: str | None = None, start: int = 0) -> Iterator[bytes]:
        """Yield the episodes as they are stored; arguments and errors as :meth:`episodes`."""
        end = len(self) if split is None else self._episodes_in(split)
        at = start
        while at < end:
            try:
                for record in self._records(split, at, end):
                    yield record
                    at += 1
                return
            except FileNotFoundError as error:
                # A writer has joined files, and this one is over; the order is the same.
                before = self.shards
                self._info = self._load()
                if self.shards == before:
                    raise DecodeError(f"{error.filename} is missing") from error

    def _episodes_in(self, split: str) -> int:
        if split not in self.splits:
            names = ", ".join(self.splits) or "none yet"
            raise ValueError(f"no split {split!r} in {self.directory}: there is {names}")
        return self.splits[split]

    def _records(self, split: str | None, start: int, end: int) -> Iterator[bytes]:
        at = 0
        for shard in self.shards:
            if split is not None and shard.split != split:
                continue
            first, at = at, at + shard.length
            if at <= start:
                continue
            for number, record in enumerate(read_records(shard.path, max(0, start - first))):
                if max(first, start) + number >= end:
                    return
                yield record

    def episodes(self, split: str | None = None, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes in their order.

        What agentlace wrote comes as it was before: images with their leading dimensions,
        actions with their shape and dtype (their values are float32). Other datasets come as
        TFDS decodes them; what RLDS leaves open there is filled in: a reward of 0, a discount of
        1, flags by position, ``terminated`` or ``truncated`` by the last ``is_terminal``.

        Args:
            split: one of :attr:`splits`; all if None.
            start: number of the first episode; those before are skipped without decoding.

        Raises:
            DecodeError: a record is damaged; says in which file and where.
            ValueError: no such split.
        """
        with ThreadPoolExecutor(self._threads, "agentlace-rlds-decode") as threads:
            for number, record in enumerate(self.records(split, start), start):
                try:
                    yield self._decoded(record, threads)
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    where = f"episode {number} of {self.directory}"
                    raise DecodeError(f"{where} does not fit the features: {reason}") from error

    def decode(self, record: bytes) -> Episode:
        """Return the episode of one record; whatever is wrong with it comes out as it is."""
        with ThreadPoolExecutor(1) as threads:
            return self._decoded(record, threads)

    def _decoded(self, record: bytes, threads: ThreadPoolExecutor) -> Episode:
        example = self.features.deserialize_example_np(record)
        source, features = example["steps"], self._own_features
        found = list(threads.map(source.__getitem__, range(len(source))))
        steps = [_filled(step) for step in found]
        metadata = _texts(example.get("episode_metadata", {}))
        if features is None:
            steps = [_texts(step) for step in steps]
        else:
            steps = [_restored(features, step) for step in steps]
            metadata = _restored_metadata(features, metadata)
        for number, step in enumerate(steps):
            step.setdefault("is_first", np.bool_(number == 0))
            step.setdefault("is_last", np.bool_(number == len(steps) - 1))
            step.setdefault("is_terminal", np.bool_(False))
        ending = _ending(metadata.pop(ENDING, None) if features else None, steps)
        if features is not None:
            bare = bool(features.bare_observation)
        else:
            bare = any(not isinstance(step.get("observation", {}), Mapping) for step in found)
        return Episode(steps, ending, metadata, bare)

    @property
    def _own_features(self) -> Features | None:
        return self.manifest.features if self.manifest is not None else None


def _manifest_of(directory: Path) -> Manifest | None:
    try:
        return Manifest.from_bytes((directory / manifests.FILE).read_bytes())
    except DecodeError:
        return None


def _filled(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step with a reward and a discount, and dicts that may be changed."""
    found = {"reward": np.float32(0), "discount": np.float32(1), **step}
    if not isinstance(found.get("observation"), Mapping):
        found["observation"] = {"state": found["observation"]} if "observation" in found else {}
    return found


def _texts(tree: Any) -> Any:
    """Return a tree with str for bytes that are text."""
    if isinstance(tree, Mapping):
        return {key: _texts(value) for key, value in tree.items()}
    if isinstance(tree, bytes):
        try:
            return tree.decode()
        except UnicodeDecodeError:
            return tree
    return tree


def _restored(features: Features, step: Mapping[str, Any]) -> dict[str, Any]:
    leaves = {path: features.steps[path].restored(value) for path, value in flat(step).items()}
    tree = nested(leaves)
    order = [key for key in STEP_KEYS if key in tree]
    return {key: tree[key] for key in (*order, *(key for key in tree if key not in STEP_KEYS))}


def _restored_metadata(features: Features, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata as it was given: JSON's part of it is laid over the features'."""
    leaves = flat({k: v for k, v in metadata.items() if k not in (ENDING, OTHER)})
    kept = {path: features.metadata[path].restored(value) for path, value in leaves.items()}
    over = json.loads(metadata.get(OTHER, "{}"))
    tree = {**nested(kept), **over, ENDING: metadata.get(ENDING)}
    return {key: value for key, value in tree.items() if value is not None}


def _ending(told: Any, steps: list[dict[str, Any]]) -> Ending:
    for ending in ENDINGS:
        if told == ending:
            return ending
    return "terminated" if steps and bool(steps[-1]["is_terminal"]) else "truncated"
