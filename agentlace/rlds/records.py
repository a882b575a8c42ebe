"""Episodes → records: ``tf.train.Example`` in bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from agentlace.errors import SchemaMismatch
from agentlace.rlds.episode import Episode, as_dicts
from agentlace.rlds.features import ENDING, OTHER, Features
from agentlace.rlds.leaf import Leaf, flat
from agentlace.rlds.tfds import example_proto

BATCH = 8
"""Values that one thread packs in one go."""


def encode_episode(features: Features, episode: Episode, threads: Executor) -> bytes:
    """Return an episode as one record.

    Args:
        features: of the dataset, complete.
        episode: that is to fit them.
        threads: that encode images.

    Raises:
        SchemaMismatch: it does not fit; names the step, the leaf, and both shapes or dtypes.
    """
    columns = _columns(features, episode)
    packing = {
        path: [threads.submit(_packed, features.steps[path], part) for part in _parts(values)]
        for path, values in columns.items()
        if features.steps[path].is_packed
    }
    example = example_proto()()
    fill = example.features.feature
    for path, values in columns.items():
        if path in packing:
            values = [data for part in packing[path] for data in part.result()]
        _put(fill[f"steps/{path}"], features.steps[path], values)
    for path, (leaf, value) in _metadata(features, episode).items():
        values = [leaf.packed(value)] if leaf.is_packed else [value]
        _put(fill[f"episode_metadata/{path}"], leaf, values)
    record: bytes = example.SerializeToString()
    return record


def _columns(features: Features, episode: Episode) -> dict[str, list[Any]]:
    """Return each leaf's values of all steps, checked."""
    if features.bare_observation != episode.bare_observation:
        kinds = ("a dict", "an array")
        mine, theirs = (
            kinds[bool(b)] for b in (episode.bare_observation, features.bare_observation)
        )
        raise SchemaMismatch("observation", f"is {mine}, the dataset has {theirs}")
    columns: dict[str, list[Any]] = {path: [] for path in features.steps}
    for number, step in enumerate(episode.steps):
        leaves = flat(step)
        if leaves.keys() != columns.keys():
            _raise_difference(leaves.keys(), columns.keys(), number)
        for path, value in leaves.items():
            checked = features.steps[path].check(value, f"steps/{number}/{path}")
            columns[path].append(checked)
    return columns


def _raise_difference(found: Any, known: Any, number: int) -> None:
    for path in sorted(known - found):
        raise SchemaMismatch(f"steps/{number}/{path}", "missing, but part of the dataset")
    path = min(found - known)
    names = ", ".join(sorted(known))
    raise SchemaMismatch(f"steps/{number}/{path}", f"unknown to the dataset, which has {names}")


def _metadata(features: Features, episode: Episode) -> dict[str, tuple[Leaf, Any]]:
    """Return the leaves of the metadata, checked; what does not fit becomes JSON.

    What an episode does not say is zero, and null in the JSON.
    """
    text = Leaf("text", (), "str", (), "str", "none")
    given = {k: v for k, v in episode.metadata.items() if isinstance(k, str)}
    other = {str(k): v for k, v in episode.metadata.items() if k not in given}
    found: dict[str, tuple[Leaf, Any]] = {}
    for key, value in given.items():
        try:
            leaves = flat({key: as_dicts(value)})
            expected = {p for p in features.metadata if p.split("/")[0] == key}
            if leaves.keys() != expected:
                raise SchemaMismatch(key, "not what the dataset has")
            checked = {p: features.metadata[p].check(v, p) for p, v in leaves.items()}
        except SchemaMismatch:
            other[key] = value
            continue
        found.update({path: (features.metadata[path], v) for path, v in checked.items()})
    for path in features.metadata.keys() - found.keys():
        leaf = features.metadata[path]
        found[path] = (leaf, leaf.check(leaf.zero(), path))
        other.setdefault(path.split("/")[0], None)
    found[ENDING] = (text, [episode.ending.encode()])
    found[OTHER] = (text, [json.dumps(other, default=_plain, sort_keys=True).encode()])
    return found


def _plain(value: Any) -> Any:
    """Return what JSON takes for a value that it does not."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[i : i + BATCH] for i in range(0, len(values), BATCH)]


def _packed(leaf: Leaf, values: Sequence[Any]) -> list[bytes]:
    return [leaf.packed(value) for value in values]


def _put(feature: Any, leaf: Leaf, values: Sequence[Any]) -> None:
    """Fill a ``tf.train.Feature`` with values that were checked, and packed if they are to be."""
    if leaf.is_packed:
        feature.bytes_list.value.extend(values)
    elif leaf.kind in ("text", "bytes"):
        feature.bytes_list.value.extend(item for value in values for item in value)
    else:
        _put_numbers(feature, np.stack(values).reshape(-1))


def _put_numbers(feature: Any, numbers: np.ndarray[Any, Any]) -> None:
    if numbers.dtype.kind == "f":
        # The message's only field, packed: its tag, the length, and the floats as they are.
        data = numbers.astype("<f4").tobytes()
        feature.float_list.ParseFromString(b"\x0a" + _varint(len(data)) + data)
        return
    if numbers.dtype == np.uint64:
        numbers = numbers.view(np.int64)
    elif numbers.dtype == np.bool_:
        numbers = numbers.view(np.uint8)
    feature.int64_list.value.extend(numbers.tolist())


def _varint(number: int) -> bytes:
    """Return an integer in protobuf's way: seven bits a byte, the lowest first."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])
