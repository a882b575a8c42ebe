"""One dataset's books and data: what comes from the streams is entered and committed here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from agentlace.codec import Chunk, Mark
from agentlace.errors import Closed, StoreFull
from agentlace.recorder.builder import EpisodeBuilder
from agentlace.recorder.episodes import Counts, Finished
from agentlace.recorder.ledger import Book, stores_in, to_cursor
from agentlace.recorder.sink import Sink
from agentlace.rlds.writer import DatasetWriter
from agentlace.transport.keys import StoreKeys
from agentlace.transport.streams import StreamId

COMMIT_NBYTES = 32 << 20
"""When so many bytes wait for the commit, they are committed at once."""

Positions = dict[str, StreamId]


class Scribe:
    """Enters transitions and marks of several stores, and commits data and positions together.

    Thread-safe. After a failure nothing more is entered or committed: what is not committed is
    still in the streams.

    Args:
        sink: where episodes go.
        stores: keys of the stores that are recorded.
        on_commit: called with a store's name and how far each of its streams is committed.
        open_max_bytes: what is larger is cut, until :meth:`limit_open` says otherwise.

    Attributes:
        books: by the store's name.
        failure: what keeps it from going on; None if nothing does.
        committed_s: when it committed last, in monotonic time.
    """

    def __init__(
        self,
        sink: Sink,
        stores: Iterable[StoreKeys],
        on_commit: Callable[[str, Positions], object],
        open_max_bytes: int,
    ) -> None:
        self._sink = sink
        self._lock = threading.RLock()
        self._on_commit = on_commit
        self._prefixes = {keys.name: keys.prefix for keys in stores}
        self._others = stores_in(self.writer.cursor)
        kept = {name: self._others.pop(prefix, None) for name, prefix in self._prefixes.items()}
        self.books = {name: Book.of(v) if v else Book() for name, v in kept.items()}
        self._floors = {name: book.floors for name, book in self.books.items()}
        self._limits = dict.fromkeys(self.books, open_max_bytes)
        self.failure: Exception | None = None
        self.committed_s = time.monotonic()

    @property
    def writer(self) -> DatasetWriter:
        """Return the dataset's writer."""
        return self._sink.writer

    def committed(self, store: str) -> Positions:
        """Return how far each stream of a store is committed."""
        with self._lock:
            return dict(self._floors[store])

    def locked(self) -> AbstractContextManager[Any]:
        """Return what keeps others out while several things are looked at."""
        return self._lock

    # -- entering ------------------------------------------------------------------------------

    def add(self, store: str, actor: str, chunk: Chunk, last: StreamId) -> None:
        """Enter transitions of an actor, the last of which has this position."""
        self._enter(store, actor, lambda builder: builder.add(chunk, last))

    def mark(self, store: str, actor: str, mark: Mark, at: StreamId) -> None:
        """Enter a mark of an actor."""
        self._enter(store, actor, lambda builder: builder.mark(mark, at))

    def abort(self, store: str, actor: str, reason: str) -> None:
        """End what is open of an actor."""
        self._enter(store, actor, lambda builder: builder.abort(reason))

    def _enter(
        self, store: str, actor: str, work: Callable[[EpisodeBuilder], list[Finished]]
    ) -> None:
        with self._lock:
            if self.failure is not None:
                return
            try:
                builder = self.books[store].builder(actor, time.time())
                builder.limit_bytes = self._limits[store]
                for finished in work(builder):
                    self._sink.take(store, actor, finished, builder.counts)
                if self.writer.pending_nbytes > COMMIT_NBYTES:
                    self._commit()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> Exception:
        """Enter and commit nothing from now on; returns the reason."""
        if isinstance(error, StoreFull):
            text = f"the recording stops: {error}. Whatever is not in the dataset is still in the "
            cause, error = error, StoreFull(f"{text}streams: make room, and record again")
            error.__cause__ = cause
        self.failure = self.failure or error
        return self.failure

    def limit_open(self, store: str, nbytes: int) -> None:
        """Cut what is larger, from now on."""
        with self._lock:
            self._limits[store] = nbytes
            large = [a for a, b in self.books[store].builders.items() if b.nbytes > nbytes]
            for actor in large:
                self._enter(store, actor, lambda builder: builder.cut_if_large())

    # -- committing ----------------------------------------------------------------------------

    def commit(self) -> bool:
        """Commit what is finished, if anything is; returns whether something was.

        Raises:
            StoreFull: the disk is full, now or before.
            Closed: after :meth:`close`.
            Exception: whatever kept something from being entered, now or before.
        """
        with self._lock:
            if self.failure is not None:
                raise self.failure
            try:
                return self._commit()
            except Exception as error:
                raise self._fail(error) from error

    def _commit(self) -> bool:
        floors = {name: book.floors for name, book in self.books.items()}
        if floors == self._floors and not self.writer.pending:
            return False
        books = {self._prefixes[name]: book for name, book in self.books.items()}
        self.writer.commit(to_cursor(books, self._others))
        self.committed_s = time.monotonic()
        before, self._floors = self._floors, floors
        for name, positions in floors.items():
            if positions != before[name]:
                self._on_commit(name, positions)
        return True

    def forget(self, store: str, actors: Iterable[str]) -> None:
        """Keep no more than the counts of actors that will never come back."""
        with self._lock:
            for actor in actors:
                if not self.books[store].builders[actor].is_open:
                    self.books[store].forget(actor)

    def close(self) -> None:
        """Commit what is finished, if that still can be, and enter nothing from now on.

        Raises:
            StoreFull: the disk is full.
        """
        with self._lock:
            if self.failure is None:
                self.commit()
                self.failure = Closed("the recorder was stopped")

    def counts(self) -> Mapping[str, Mapping[str, Counts]]:
        """Return the counts of each actor of each store; under "" those of forgotten ones."""
        with self._lock:
            return {
                name: {
                    **{actor: b.counts + Counts() for actor, b in book.builders.items()},
                    "": book.gone + Counts(),
                }
                for name, book in self.books.items()
            }
