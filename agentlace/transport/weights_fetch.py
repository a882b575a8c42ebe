"""Fetching a network's bytes: in few round trips, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentlace import codec
from agentlace.errors import DecodeError
from agentlace.transport.connection import Channel
from agentlace.transport.resp import Buffer
from agentlace.transport.weights import Manifest, batches

FETCH_TIMEOUT_S = 30.0
Part = tuple[str, int]
"""A part's key, and about how many bytes it has."""


class Superseded(Exception):
    """A leaf is gone: newer versions were published while this one was being fetched."""


class Assembly:
    """A network's frame into which the parts of its leaves are put.

    Parts of a leaf have no fixed size: each begins where the one before it has ended.

    Attributes:
        data: the whole frame.
        places: the parts that are in it, by their keys.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.data = codec.Frame([], manifest.nbytes).copy()
        self.data[: manifest.head.nbytes] = manifest.head
        self.places: dict[str, memoryview] = {}
        _, spans = codec.leaf_spans(self.data)
        self._leaves = list(zip(spans, manifest.leaves or (), strict=True))
        self._ends = [offset for offset, _ in spans]

    def adopt(self, known: Mapping[str, Buffer]) -> None:
        """Put in what is known, as far as it has its place already."""
        for leaf, (_, keys) in enumerate(self._leaves):
            for key in keys:
                if key not in known:
                    break
                self._put(leaf, key, known[key])

    @property
    def missing(self) -> list[Part]:
        """Return the parts that are not there yet, in the order in which to put them in."""
        return [
            (key, -(-nbytes // len(keys)))
            for (_, nbytes), keys in self._leaves
            for key in keys
            if key not in self.places
        ]

    def fill(self, parts: Iterator[Buffer | None]) -> None:
        """Put in what is missing; a part that is None is gone, and those after it go unused.

        Raises:
            Superseded: some are gone.
            DecodeError: they do not fit.
        """
        has_gap = False
        for leaf, (_, keys) in enumerate(self._leaves):
            is_whole = True
            for key in keys:
                if key in self.places:
                    continue
                part = next(parts)
                is_whole = is_whole and part is not None
                if part is not None and is_whole:
                    self._put(leaf, key, part)
            has_gap |= not is_whole
        if has_gap:
            raise Superseded
        self._check()

    def _put(self, leaf: int, key: str, part: Buffer) -> None:
        (offset, nbytes), _ = self._leaves[leaf]
        start = self._ends[leaf]
        end = self._ends[leaf] = start + len(part)
        if end > offset + nbytes:
            raise DecodeError(f"a leaf of {nbytes} bytes arrived with {end - offset} or more")
        self.data[start:end] = part
        self.places[key] = self.data[start:end]

    def _check(self) -> None:
        for ((offset, nbytes), _), end in zip(self._leaves, self._ends, strict=True):
            if end != offset + nbytes:
                raise DecodeError(f"a leaf of {nbytes} bytes arrived with {end - offset}")


class Fetcher:
    """Fetches networks for one receiver.

    Two kinds of parts are remembered: those of a fetch that did not get to its end, until the
    next one has taken over what it can use; and, from when a second network refers to them on,
    those that do not change, which have memory of their own, since the actor may write into a
    network that it was given.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._unfinished: Assembly | None = None
        self._frozen: dict[str, Buffer] = {}
        self._last_keys: set[str] = set()

    def fetch(self, manifest: Manifest) -> memoryview:
        """Return the network's whole frame.

        Raises:
            Superseded: it is no longer there. What was fetched of it is remembered.
            DecodeError: its parts do not fit together.
        """
        if manifest.leaves is None:
            self._forget()
            return manifest.head
        try:
            return self._fetched(manifest)
        except (TypeError, ValueError, DecodeError) as error:
            self._forget()
            raise DecodeError(f"network {manifest.version} is damaged: {error}") from error

    def _fetched(self, manifest: Manifest) -> memoryview:
        assembly, keys = Assembly(manifest), manifest.keys
        assembly.adopt(self._known())
        self._unfinished = assembly
        assembly.fill(self._received(assembly.missing))
        self._frozen = {
            key: self._frozen[key] if key in self._frozen else bytes(assembly.places[key])
            for key in keys & self._last_keys
        }
        self._last_keys, self._unfinished = keys, None
        return assembly.data

    def _known(self) -> dict[str, Buffer]:
        unfinished = self._unfinished.places if self._unfinished else {}
        return {**unfinished, **self._frozen}

    def _received(self, parts: list[Part]) -> Iterator[Buffer | None]:
        """Fetch and yield parts, None for one that is gone; ends after a batch that has such."""
        for batch in batches(parts):
            self._channel.send([("GET", key) for key in batch], FETCH_TIMEOUT_S)
            is_whole = True
            for _ in batch:
                (part,) = self._channel.checked([self._channel.receive(FETCH_TIMEOUT_S)])
                is_whole = is_whole and part is not None
                yield part
            if not is_whole:
                raise Superseded

    def _forget(self) -> None:
        self._unfinished = None
        self._frozen.clear()
        self._last_keys.clear()
