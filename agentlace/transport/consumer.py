"""A consumer's end of a store's transition streams."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentlace import codec
from agentlace.errors import (
    AgentlaceError,
    AlreadyServed,
    Closed,
    DecodeError,
)
from agentlace.logs import Refrain, about
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import MARGIN_S, Broker
from agentlace.transport.cursor import Cursor, Lease
from agentlace.transport.fetching import Fetching
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.streams import (
    START,
    StreamId,
    names_in,
    newest_id,
    tidied,
)

log = logging.getLogger(__name__)

ACTORS_POLL_S = 2.0
"""How often the set of actors is read, beside being told of arrivals."""
JOIN_TIMEOUT_S = 5.0
GOODBYE_TIMEOUT_S = 1.0

Apply = Callable[[str, codec.Chunk, StreamId], dict[int, Exception] | None]
"""Called with the actor, the new transitions and the ID of the last of them.

Returns those that were refused, by their number in the chunk, with the reason.
"""
OnApplied = Callable[[str, codec.Chunk, StreamId, dict[int, Exception]], None]
OnMark = Callable[[str, codec.Mark, StreamId], None]
"""Called with the actor, where an episode of it begins or ends, and the ID of that mark."""


class Consumer:
    """Reads every actor's stream of one store and applies each transition exactly once.

    Args:
        broker: where.
        keys: the trainer's keys.
        store: name of the store.
        apply: puts transitions into the store; an exception rejects the chunk as a whole.
        name: of this consumer; its cursors are published under it.
        positions: last applied ID per actor, kept with the data that they describe. They are
            updated in place right after ``apply``.
        lease: as for :class:`Cursor`.
        on_applied: called with the same, and with what was refused, once the position has moved.
        on_mark: called with each mark, in its place between the transitions.
        committed: as for :class:`Cursor`.
    """

    def __init__(
        self,
        broker: Broker,
        keys: ServiceKeys,
        store: str,
        apply: Apply,
        name: str,
        positions: dict[str, StreamId],
        lease: Lease | None = None,
        on_applied: OnApplied | None = None,
        on_mark: OnMark | None = None,
        committed: dict[str, StreamId] | None = None,
    ) -> None:
        self._service = keys
        self._keys = keys.store(store)
        self._apply = apply
        self._on_applied = on_applied
        self._on_mark = on_mark
        self._channel = broker.channel(key=self._keys.prefix)
        self._cursor = Cursor(self._channel, self._keys, name, positions, lease, committed)
        self._applying = threading.Lock()
        self._stop = threading.Event()
        self._fetching = Fetching(self._stop)
        self._thread: threading.Thread | None = None
        self._actors: set[str] = set(positions)
        self._decoder = codec.ChunkDecoder()
        self._streams: dict[str, bytes] = {}
        self._by_key: dict[bytes, str] = {}
        self._joined = "0"
        self._refrain = Refrain()
        self.is_applying = False
        self.applied = 0
        self.gaps = 0
        self.rejected = 0

    @property
    def positions(self) -> dict[str, StreamId]:
        """Return the last applied ID per actor."""
        return self._cursor.positions

    @contextlib.contextmanager
    def between_entries(self, timeout_s: float) -> Iterator[None]:
        """Hold the consumer where its store holds exactly what its positions tell.

        Raises:
            TimeoutError: an entry is still being applied after ``timeout_s``.
        """
        if not self._applying.acquire(timeout=timeout_s):
            raise TimeoutError(f"a chunk has been inserted for {timeout_s:g} s")
        try:
            yield
        finally:
            self._applying.release()

    def commit(self, positions: Mapping[str, StreamId]) -> None:
        """Publish these positions, soon, if it is not what is applied that is published."""
        self._cursor.commit(positions)

    def register(self) -> None:
        """Make this consumer known, so that nothing that it has not read is trimmed."""
        self.gaps += self._cursor.register()

    def start(self) -> None:
        """Register and begin to read, in a thread of its own."""
        self.register()
        name = f"consume {self._keys.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        backoff, connects = Backoff(), 0
        next_poll = 0.0
        while not self._stop.is_set():
            try:
                self._channel.connect()
                if self._channel.connects != connects:
                    self.register()
                    self._joined = str(newest_id(self._channel, self._keys.joined))
                    connects, next_poll = self._channel.connects, 0.0
                if time.monotonic() > next_poll:
                    self._cursor.keep_registered()
                    self._poll_actors()
                    next_poll = time.monotonic() + ACTORS_POLL_S
                self._read()
                backoff.reset()
            except (Closed, AlreadyServed):
                return
            except (AgentlaceError, ValueError) as error:
                if backoff.is_news(error) and not self._stop.is_set():
                    text, fields = "store %r waits for the broker: %s", self._about(error=error)
                    log.warning(text, self._keys.name, error, extra=fields)
                self._cursor.forget_what_was_published()
                self._stop.wait(backoff.next_s())

    def _read(self) -> None:
        """Fetch and apply what is new; returns after a slice if nothing is."""
        channel, streams = self._channel, self._watched()
        ids = [b"%d-%d" % self.positions.get(actor, START) for actor in streams.values()]
        block_ms, count = int(1000 * channel.slice_s), self._fetching.count(len(ids))
        arguments = (*streams, self._keys.joined, *ids, self._joined)
        read: Any = ("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *arguments)
        commands = [*self._cursor.commands(), read]
        *published, reply = channel.exchange(commands, channel.slice_s + MARGIN_S)
        channel.checked([reply])
        self._fetching.adapt(reply or ())
        for key, entries in reply or ():
            actor = streams.get(bytes(key))
            if actor is None:
                self._join(entries)
                continue
            for entry_id, fields in entries:
                if self._stop.is_set():
                    return
                self._take(actor, StreamId.parse(entry_id), fields)
                self._cursor.publish(is_urgent=False)
        self._cursor.check(published)
        self._fetching.rest(bool(reply))

    def _watched(self) -> dict[bytes, str]:
        """Return the streams' keys, each with its actor."""
        if self._streams.keys() != self._actors:
            self._streams = {actor: self._keys.stream(actor).encode() for actor in self._actors}
            self._by_key = {key: actor for actor, key in self._streams.items()}
        return self._by_key

    def _join(self, entries: list[Any]) -> None:
        for entry_id, fields in entries:
            self._joined = bytes(entry_id).decode()
            self._actors.update(names_in(fields[1:2]))

    def _take(self, actor: str, entry: StreamId, fields: list[Any]) -> None:
        """Apply one entry, then tell of it."""
        with self._applying:
            applied = self._apply_entry(actor, entry, fields)
        if applied is not None and self._on_applied is not None:
            chunk, refusals = applied
            self._on_applied(actor, chunk, entry, refusals)

    def _apply_entry(
        self, actor: str, entry: StreamId, fields: list[Any]
    ) -> tuple[codec.Chunk, dict[int, Exception]] | None:
        """Skip rows that are already there, report those that are missing, apply the others."""
        position = self.positions.get(actor, START)
        if entry <= position:
            return None
        refusals: dict[int, Exception] = {}
        chunk = None
        try:
            values = dict(zip(map(bytes, fields[::2]), fields[1::2], strict=True))
            if b"mark" in values:
                self._take_mark(actor, position, entry, values[b"mark"])
                return None
            first, chunk = int(bytes(values[b"first"])), self._decoder.decode(values[b"chunk"])
            if chunk.n != entry.number - first + 1:
                raise DecodeError(f"{chunk.n} transitions where {entry} and {first} were told")
            skip = self._note_gap(actor, position, entry, first)
            chunk = chunk.tail(skip) if skip else chunk
            chunk.meta = {**chunk.meta, "actor": actor}
            self.is_applying = True
            refusals = self._apply(actor, chunk, entry) or {}
            self.applied += chunk.n - len(refusals)
            if refusals:
                self._reject(actor, entry, len(refusals), next(iter(refusals.values())))
        except (Exception, SystemExit) as error:
            known = position.number if entry.incarnation == position.incarnation else 0
            self._reject(actor, entry, entry.number - known, error)
            chunk = None
        self._cursor.move(actor, entry)
        self.is_applying = False
        return None if chunk is None else (chunk, refusals)

    def _take_mark(self, actor: str, position: StreamId, entry: StreamId, frame: Any) -> None:
        """Hand on a mark; without a callback it is only passed."""
        self._note_gap(actor, position, entry, entry.number)
        try:
            if self._on_mark is not None:
                self.is_applying = True
                self._on_mark(actor, codec.decode_mark(frame), entry)
        except Exception as error:
            text, args = "store %r: mark %s of actor %r: %s", (self._keys.name, entry, actor, error)
            cause, fields = ("mark", actor, type(error)), self._about(peer=actor, error=error)
            self._refrain.say(log.error, cause, text, *args, extra=fields)
        self._cursor.move(actor, entry)
        self.is_applying = False

    def _reject(self, actor: str, entry: StreamId, count: int, reason: BaseException) -> None:
        self._refrain.say(
            log.error,
            ("rejected", actor, type(reason)),
            "store %r rejected %d transitions of actor %r, of chunk %s: %.1000s",
            *(self._keys.name, count, actor, entry, reason),
            extra=self._about(peer=actor, error=reason),
        )
        self.rejected += count

    def _note_gap(self, actor: str, position: StreamId, entry: StreamId, first: int) -> int:
        """Report what is missing before an entry; returns how many of its rows are known."""
        same = entry.incarnation == position.incarnation
        expected = position.number + 1 if same else 1
        if first > expected and position != START:
            self.gaps += first - expected
            self._refrain.say(
                log.warning,
                ("lost", actor),
                "store %r: %d transitions of actor %r before %s are lost: dropped unread, or the "
                "broker came back without them",
                *(self._keys.name, first - expected, actor, entry),
                extra=self._about(peer=actor),
            )
        return max(expected - first, 0)

    def _poll_actors(self) -> None:
        """Read the set of actors, and tidy up after those that are gone."""
        channel = self._channel
        found = set(names_in(channel.call("SMEMBERS", self._keys.actors)))
        closed = set(names_in(channel.call("SMEMBERS", self._keys.closed)))
        self._actors = found
        self._cursor.publish()
        for actor in found:
            has_left, service = actor in closed, channel.at(self._service.prefix)
            if not has_left and service.call("EXISTS", self._service.client(actor)):
                continue
            if tidied(channel, self._keys, actor, has_left):
                self._actors = self._actors - {actor}

    def stop(self) -> None:
        """Stop reading, publish the last cursors, and tidy up after actors that are gone.

        A chunk that is being applied may finish first (JOIN_TIMEOUT_S), unless it is its own
        thread that stops it.
        """
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            self._channel.interrupt()
            thread.join(JOIN_TIMEOUT_S)
            if thread.is_alive():
                text = "store %r: a chunk is still being applied"
                log.error(text, self._keys.name, extra=self._about())
            else:
                self._say_goodbye()
        self._channel.close()

    def _say_goodbye(self) -> None:
        self._channel.disconnect()
        self._channel.be_back_within(GOODBYE_TIMEOUT_S)
        try:
            self._cursor.keep_registered()
            self._poll_actors()
        except AlreadyServed:
            pass  # its successor tidies up
        except AgentlaceError as error:
            text, fields = "store %r could not publish its cursors: %s", self._about(error=error)
            log.warning(text, self._keys.name, error, extra=fields)

    def _about(self, **fields: Any) -> dict[str, Any]:
        return about(self._keys.labels, **fields)
