"""What a dataset holds, told without decoding images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlace.progress import Advance, counted
from agentlace.rlds.features import ENDING
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.tfds import example_proto, nested_features

UNKNOWN = "unknown"
"""Ending of episodes of others, which do not say it."""


@dataclass(frozen=True)
class Summary:
    """What a dataset holds.

    Attributes:
        name: of the dataset.
        version: of the dataset.
        files: number of its files of records.
        nbytes: of these files.
        lengths: steps of each episode.
        returns: sum of the rewards of each episode; 0 where there are none.
        endings: number of episodes by how they ended.
        features: by path (``steps/observation/wrist``), in TFDS' words.
    """

    name: str
    version: str
    files: int
    nbytes: int
    lengths: list[int]
    returns: list[float]
    endings: dict[str, int]
    features: dict[str, str]

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return sum(self.lengths)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "version": self.version,
            "episodes": self.episodes,
            "steps": self.steps,
            "files": self.files,
            "bytes": self.nbytes,
            "lengths": _spread(self.lengths),
            "returns": _spread(self.returns),
            "endings": self.endings,
            "features": self.features,
        }


def summarise(reader: DatasetReader, advance: Advance = lambda n: None) -> Summary:
    """Return what a dataset holds; reads all of it, but decodes no images.

    Args:
        reader: of the dataset.
        advance: called with 1 after each episode.

    Raises:
        DecodeError: a record is damaged.
    """
    example = example_proto()
    lengths, returns, endings = [], [], Counter[str]()
    for record in counted(reader.records(), advance):
        features = example.FromString(record).features.feature
        rewards = _numbers(features, "steps/reward")
        lengths.append(_length(features))
        returns.append(float(rewards.sum()))
        endings[_ending(features)] += 1
    shards = reader.shards
    return Summary(
        name=reader.name,
        version=reader.version,
        files=len(shards),
        nbytes=sum(shard.path.stat().st_size for shard in shards),
        lengths=lengths,
        returns=returns,
        endings=dict(endings.most_common()),
        features=nested_features(reader.features),
    )


def _length(features: Mapping[str, Any]) -> int:
    """Return the number of steps, as the shortest column of them tells it."""
    for key in ("steps/is_first", "steps/is_last", "steps/reward"):
        if key in features:
            return len(_numbers(features, key))
    lengths = [len(_numbers(features, key)) for key in features if key.startswith("steps/")]
    return min(lengths, default=0)


def _numbers(features: Mapping[str, Any], key: str) -> np.ndarray[Any, Any]:
    if key not in features:
        return np.zeros(0)
    kind = features[key].WhichOneof("kind")
    values = getattr(features[key], kind).value if kind else ()
    if kind == "bytes_list":  # packed numbers, which only the features could tell
        return np.zeros(len(values))
    return np.asarray(values, float)


def _ending(features: Mapping[str, Any]) -> str:
    key = f"episode_metadata/{ENDING}"
    if key in features:
        return str(features[key].bytes_list.value[0].decode(errors="replace"))
    flags = _numbers(features, "steps/is_terminal")
    if not len(flags):
        return UNKNOWN
    return "terminated" if flags[-1] else "truncated"


def _spread(values: list[Any]) -> dict[str, float] | None:
    """Return least, median, mean and most; None of nothing."""
    if not values:
        return None
    return {
        "least": float(np.min(values)),
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "most": float(np.max(values)),
    }
