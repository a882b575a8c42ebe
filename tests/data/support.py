"""Transitions that tell whether they are whole, and columns made of them."""

import zlib

import numpy as np

from agentlace.codec import decode_chunk, encode_chunk


def sealed(i):
    """Return transition number ``i``; a checksum in it covers all of its other leaves."""
    rng = np.random.default_rng(i)
    transition = {
        "observations": {
            "wrist": _wrist(i),
            "state": rng.normal(size=(1, 19)).astype(np.float32),
        },
        "next_observations": {"wrist": _wrist(i + 1)},
        "actions": (rng.normal(size=7), np.int32(i % 5)),
        "rewards": np.float32(i),
        "n": np.int64(i),
    }
    return {**transition, "seal": np.uint32(checksum(transition))}


def _wrist(i):
    return np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)


def checksum(transition):
    """Return the checksum of a transition's leaves but its seal."""
    leaves = [
        transition["observations"]["wrist"],
        transition["observations"]["state"],
        transition["next_observations"]["wrist"],
        *transition["actions"],
        transition["rewards"],
        transition["n"],
    ]
    value = 0
    for leaf in leaves:
        value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
    return value


def row(batch, i):
    """Return one transition of a batch."""
    if isinstance(batch, dict):
        return {key: row(value, i) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(row(value, i) for value in batch)
    return batch[i]


def chunk(rows):
    """Return rows as a consumer hands them to a store."""
    return decode_chunk(bytes(encode_chunk(rows)))


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, tuple):
        return [leaf for value in tree for leaf in leaves(value)]
    return [np.asarray(tree)]


def same(found, expected):
    """Whether two trees hold the same arrays, with the same dtypes."""
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
