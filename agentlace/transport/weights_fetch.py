"""Fetching a network's bytes: in few round trips, nothing twice, and pinned while it takes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from agentlace import codec
from agentlace.errors import AgentlaceError, DecodeError
from agentlace.logs import about
from agentlace.progress import Logged
from agentlace.transport.connection import Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.resp import Buffer, ErrorReply, Reply
from agentlace.transport.weights import Manifest, batches, newest_manifest
from agentlace.transport.weights_pins import NEWEST, Pin

log = logging.getLogger(__name__)

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

    A network that comes in several batches is pinned meanwhile. Where the broker refuses that
    (it is full, or its user may only read) networks are fetched all the same.

    Two kinds of parts are remembered: those of a fetch that did not get to its end, until the
    next one has taken over what it can use; and, from when a second network refers to them on,
    those that do not change, which have memory of their own, since the actor may write into a
    network that it was given.
    """

    def __init__(self, channel: Channel, keys: ServiceKeys) -> None:
        self._channel = channel
        self._keys = keys
        self._pin = Pin(channel, keys)
        self._is_refused = False
        self._is_late = False
        self._unfinished: Assembly | None = None
        self._frozen: dict[str, Buffer] = {}
        self._last_keys: set[str] = set()

    def newest(self) -> Manifest | None:
        """Return the newest network's manifest; if the last one was gone, this one is pinned."""
        if not self._is_late:
            return newest_manifest(self._channel, self._keys)
        pin = self._pin.hold(NEWEST)
        commands = [("MULTI",), *pin, ("GET", self._keys.weights), ("EXEC",)]
        replies = self._channel.exchange(commands)
        for reply in replies:
            self._note_refusal(reply)
        if not isinstance(replies[-1], list):
            return newest_manifest(self._channel, self._keys)
        (value,) = self._channel.checked(replies[-1][-1:])
        return None if value is None else Manifest.decode(value)

    def fetch(self, manifest: Manifest) -> memoryview:
        """Return the network's whole frame.

        Raises:
            Superseded: it is no longer there. What was fetched of it is remembered.
            DecodeError: its parts do not fit together.
        """
        try:
            data = self._fetched(manifest)
        except (TypeError, ValueError, DecodeError) as error:
            self._forget()
            raise DecodeError(f"network {manifest.version} is damaged: {error}") from error
        except Superseded:
            self._is_late = True
            self._pin.note_loss()
            raise
        self._is_late = False
        if self._pin.is_held:
            with contextlib.suppress(AgentlaceError):  # then it ends by itself
                self._channel.send([*self._pin.release()])
        return data

    def _fetched(self, manifest: Manifest) -> memoryview:
        if manifest.leaves is None:
            self._forget()
            return manifest.head
        assembly, keys = Assembly(manifest), manifest.keys
        assembly.adopt(self._known())
        self._unfinished = assembly
        assembly.fill(self._received(assembly.missing, str(manifest.version)))
        self._frozen = {
            key: self._frozen[key] if key in self._frozen else bytes(assembly.places[key])
            for key in keys & self._last_keys
        }
        self._last_keys, self._unfinished = keys, None
        return assembly.data

    def _known(self) -> dict[str, Buffer]:
        unfinished = self._unfinished.places if self._unfinished else {}
        return {**unfinished, **self._frozen}

    def _received(self, parts: list[Part], version: str) -> Iterator[Buffer | None]:
        """Fetch and yield parts, None for one that is gone; ends after a batch that has such."""
        groups, nbytes = list(batches(parts)), sum(size for _, size in parts)
        progress = Logged(log, f"fetching network {version}", nbytes, "MB", 1e6)
        for batch in groups:
            pin = [] if batch is groups[-1] else self._pin.hold(version)
            self._channel.send([*pin, *(("GET", key) for key in batch)], FETCH_TIMEOUT_S)
            for _ in pin:
                self._note_refusal(self._channel.receive(FETCH_TIMEOUT_S))
            is_whole = True
            for _ in batch:
                (part,) = self._channel.checked([self._channel.receive(FETCH_TIMEOUT_S)])
                is_whole = is_whole and part is not None
                progress(0 if part is None else len(part))
                yield part
            if not is_whole:
                raise Superseded

    def _note_refusal(self, reply: Reply) -> None:
        if isinstance(reply, ErrorReply) and not self._is_refused:
            self._is_refused = True
            log.warning(
                "networks of %s are fetched without telling the trainer, and may be gone "
                "before they are here: %s",
                self._keys.name,
                reply,
                extra=about(self._keys.labels),
            )

    def _forget(self) -> None:
        self._unfinished = None
        self._frozen.clear()
        self._last_keys.clear()
