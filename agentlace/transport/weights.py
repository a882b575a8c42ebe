"""Weights: versioned keys, a pointer to the newest version, and a channel as the wake-up.

The pointer's value is a frame, the *manifest*. It holds the version and either the network's
whole frame (up to INLINE_BYTES), or the frame's header and, per leaf, the keys of its bytes.
A leaf whose bytes have not changed keeps the keys of the version that last changed it, so a
frozen encoder is sent once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from agentlace import codec
from agentlace.errors import DecodeError
from agentlace.transport.connection import Channel
from agentlace.transport.keys import ServiceKeys

INLINE_BYTES = 64 << 10
"""Networks up to this size ride inside the notification."""

BATCH_BYTES = 2 << 20
"""Leaves travel several at a time, so many bytes (or one key's) and keys in one write.

With more bytes both ends work outside of their caches, and 100 MB take longer over TCP.
"""
BATCH_KEYS = 256

MANIFEST = "weights"

T = TypeVar("T")
LeafKeys = list[str]
"""Keys of a leaf's bytes, in order; none for an empty leaf."""


class Version(NamedTuple):
    """A network's version; those of a restarted trainer are newer than its predecessor's."""

    incarnation: int
    number: int

    def __str__(self) -> str:
        """Return the form that keys use."""
        return f"{self.incarnation}-{self.number}"


class Manifest(NamedTuple):
    """What the pointer says of the newest version.

    Attributes:
        version: of the network.
        published_ms: when it was published, in the broker's time.
        nbytes: size of the network's frame.
        head: the whole frame if ``leaves`` is None, else its header.
        leaves: keys of each leaf's bytes.
    """

    version: Version
    published_ms: float
    nbytes: int
    head: memoryview
    leaves: list[LeafKeys] | None

    def encode(self) -> codec.Frame:
        """Return the manifest's frame."""
        meta = {"version": list(self.version), "ms": self.published_ms, "nbytes": self.nbytes}
        tree = {"head": np.frombuffer(self.head, np.uint8), "leaves": self.leaves}
        return codec.encode(tree, MANIFEST, meta)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Manifest:
        """Decode what :meth:`encode` made; raises DecodeError."""
        _, meta, tree = codec.decode(data, MANIFEST)
        try:
            version = Version(*map(int, meta["version"]))
            nbytes, head = int(meta["nbytes"]), tree["head"].data
            if not head.nbytes <= nbytes <= codec.MAX_FRAME_BYTES:
                raise ValueError(f"a network of {nbytes} bytes")
            leaves = tree["leaves"]
            if not all(type(key) is str for leaf in leaves or () for key in leaf):
                raise TypeError("keys that are no text")
            return cls(version, float(meta["ms"]), nbytes, head, leaves)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DecodeError(f"a damaged weights manifest: {error}") from error

    @property
    def keys(self) -> set[str]:
        """Return all keys that this version needs."""
        return {key for leaf in self.leaves or () for key in leaf}


def newest_manifest(channel: Channel, keys: ServiceKeys) -> Manifest | None:
    """Return the newest version's manifest, None if no network was published yet."""
    value = channel.call("GET", keys.weights)
    return None if value is None else Manifest.decode(value)


def batches(sized: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Group items, given with their bytes, into what travels in one write."""
    batch: list[T] = []
    total = 0
    for item, nbytes in sized:
        if batch and (total + nbytes > BATCH_BYTES or len(batch) == BATCH_KEYS):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += nbytes
    if batch:
        yield batch


def snapshot(tree: Any) -> Any:
    """Return a copy of a tree that no later change, reuse or donation of its arrays can tear.

    Arrays become numpy arrays.
    """
    return codec.decode(codec.encode(tree).copy()).tree
