"""What is wrong with a dataset, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentlace.errors import DecodeError
from agentlace.progress import Advance
from agentlace.rlds.episode import WRITTEN_AS, Episode
from agentlace.rlds.leaf import flat
from agentlace.rlds.reader import DatasetReader, Shard
from agentlace.rlds.tfrecord import scan_records

FLAGS = ("is_first", "is_last", "is_terminal")


@dataclass
class Verdict:
    """What was looked at, and what is wrong.

    Attributes:
        episodes: that were looked at.
        steps: that were looked at.
        problems: one line each: where, and what.
    """

    episodes: int = 0
    steps: int = 0
    problems: list[str] = field(default_factory=list)


def verify(reader: DatasetReader, advance: Advance = lambda n: None) -> Verdict:
    """Look at every record of a dataset: CRCs, counts, features, flags, alignment.

    What only agentlace promises (a last step of zeros, ``ending``, sizes of the files) is looked
    at in datasets that it wrote; the rest in all.

    Args:
        reader: of the dataset.
        advance: called with 1 after each episode.
    """
    verdict = Verdict()
    for shard in reader.shards:
        for problem in _of_shard(reader, shard, verdict, advance):
            verdict.problems.append(problem)
    verdict.problems += _of_counts(reader, verdict)
    return verdict


def _of_shard(
    reader: DatasetReader, shard: Shard, verdict: Verdict, advance: Advance
) -> Iterator[str]:
    where = f"{shard.path.parent.name}/{shard.path.name}"
    if not shard.path.exists():
        yield f"{where}: the file is missing"
        return
    found = 0
    for begin, record in scan_records(shard.path):
        if isinstance(record, DecodeError):
            yield f"{where}: {str(record).removeprefix(f'{shard.path}: ')}"
        else:
            for problem in _of_record(reader, record, verdict):
                yield f"{where}, episode {found} (byte {begin:,}): {problem}"
        found += 1
        advance(1)
    if found != shard.length:
        yield f"{where}: {found:,} records, but dataset_info.json says {shard.length:,}"


def _of_record(reader: DatasetReader, record: bytes, verdict: Verdict) -> Iterator[str]:
    verdict.episodes += 1
    try:
        episode = reader.decode(record)
    except Exception as error:  # whatever a decoder says about what it cannot read
        yield f"does not fit features.json: {type(error).__name__}: {error}"
        return
    verdict.steps += len(episode)
    yield from _of_flags(episode)
    if reader.manifest is not None:
        yield from _of_alignment(episode)


def _of_flags(episode: Episode) -> Iterator[str]:
    last = len(episode) - 1
    if last < 0:
        yield "no steps"
    for number, step in enumerate(episode.steps):
        for flag, wanted in (("is_first", number == 0), ("is_last", number == last)):
            if bool(step[flag]) != wanted:
                yield f"step {number} of {last + 1}: {flag} is {bool(step[flag])}"
        if step["is_terminal"] and number != last:
            yield f"step {number} of {last + 1}: is_terminal, but not the last"
        if not np.isfinite(step["reward"]):
            yield f"step {number} of {last + 1}: the reward is {step['reward']}"


def _of_alignment(episode: Episode) -> Iterator[str]:
    """Yield what is not as N transitions become N+1 steps."""
    if len(episode) < 2:
        yield "a single step: one transition makes two"
        return
    last = episode.steps[-1]
    if bool(last["is_terminal"]) != (episode.ending == "terminated"):
        yield f"it was {episode.ending}, but is_terminal is {bool(last['is_terminal'])}"
    if episode.metadata.get(WRITTEN_AS) == "steps":
        return
    for key, value in flat({k: last[k] for k in ("action", "reward", "discount")}).items():
        if _is_number(value) and np.any(value):
            yield f"the last step's {key} is not zero, though no action followed"


def _is_number(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "biuf"


def _of_counts(reader: DatasetReader, verdict: Verdict) -> Iterator[str]:
    if verdict.episodes != len(reader):
        yield f"{verdict.episodes:,} whole records, but {len(reader):,} episodes are promised"
    manifest = reader.manifest
    if manifest is None:
        return
    if not verdict.problems and verdict.steps != manifest.steps:
        yield f"{verdict.steps:,} steps, but dataset_info.json says {manifest.steps:,}"
    for shard, size in zip(reader.shards, manifest.sizes, strict=False):
        if shard.path.exists() and shard.path.stat().st_size != size:
            found = f"{shard.path.stat().st_size:,} bytes, but was written with {size:,}"
            yield f"{shard.path.parent.name}/{shard.path.name}: {found}"
