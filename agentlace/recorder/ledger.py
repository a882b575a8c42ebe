"""A recorder's books ⇄ the plain values that are committed with its data."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agentlace.codec import decode, encode
from agentlace.errors import DecodeError
from agentlace.recorder.boundaries import Continuity
from agentlace.recorder.builder import EpisodeBuilder
from agentlace.recorder.episodes import Counts, Thread
from agentlace.transport.streams import StreamId

FORMAT = 1
KIND = "metadata"
Values = dict[str, Any]


class Book:
    """What is known of the actors of one store.

    Attributes:
        builders: of each actor.
        seen_s: when something of each actor came last, in seconds since the epoch.
        gone: counts of all actors that are no longer kept one by one.
    """

    def __init__(self) -> None:
        self.builders: dict[str, EpisodeBuilder] = {}
        self.seen_s: dict[str, float] = {}
        self.gone = Counts()

    def builder(self, actor: str, now_s: float) -> EpisodeBuilder:
        """Return the builder of an actor of which something came now."""
        self.seen_s[actor] = now_s
        if actor not in self.builders:
            self.builders[actor] = EpisodeBuilder()
        return self.builders[actor]

    def forget(self, actor: str) -> None:
        """Keep no more of an actor than its counts."""
        builder = self.builders.pop(actor)
        self.seen_s.pop(actor, None)
        self.gone += builder.counts

    @property
    def floors(self) -> dict[str, StreamId]:
        """Return how far each actor's stream is finished."""
        return {actor: builder.floor for actor, builder in self.builders.items()}

    @property
    def counts(self) -> Counts:
        """Return the counts of all actors that ever were."""
        return sum((builder.counts for builder in self.builders.values()), self.gone)

    def to_values(self) -> Values:
        """Return what a recorder needs to go on where this one stands, as JSON has it."""
        return {
            "actors": {
                actor: {"seen_s": self.seen_s.get(actor, 0.0), **_values_of(builder)}
                for actor, builder in self.builders.items()
            },
            "gone": asdict(self.gone),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Book:
        """Return the book that had these values.

        Raises:
            DecodeError: they are not a book's.
        """
        book = cls()
        try:
            book.gone = Counts(**values["gone"])
            for actor, kept in values["actors"].items():
                book.builders[actor] = _builder_of(kept)
                book.seen_s[actor] = float(kept["seen_s"])
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise DecodeError(f"a recorder's cursor that is damaged: {error!r}") from error
        return book


def _values_of(builder: EpisodeBuilder) -> Values:
    thread = builder.thread
    return {
        "at": str(builder.floor),
        "numbered": builder.numbered,
        "continuity": [builder.continuity.kept, builder.continuity.broken],
        "counts": asdict(builder.counts),
        # Of what is not in the dataset with a part of it, the stream tells all again.
        "thread": None if thread is None or thread.part == 1 else _thread_values(thread),
    }


def _builder_of(values: Mapping[str, Any]) -> EpisodeBuilder:
    builder = EpisodeBuilder(StreamId.parse(values["at"].encode()))
    builder.numbered = values["numbered"]
    builder.continuity = Continuity(*values["continuity"])
    builder.counts = Counts(**values["counts"])
    if values["thread"] is not None:
        builder.thread = _thread_of(values["thread"])
    return builder


def _thread_values(thread: Thread) -> Values:
    return {
        "id": str(thread.id),
        "part": thread.part,
        "is_marked": thread.is_marked,
        "number": thread.number,
        "metadata": base64.b64encode(bytes(encode(dict(thread.metadata), KIND))).decode(),
    }


def _thread_of(values: Mapping[str, Any]) -> Thread:
    return Thread(
        StreamId.parse(values["id"].encode()),
        int(values["part"]),
        bool(values["is_marked"]),
        int(values["number"]),
        decode(base64.b64decode(values["metadata"], validate=True), KIND).tree,
    )


def to_cursor(books: Mapping[str, Book], others: Mapping[str, Any]) -> Values:
    """Return what is committed with the data.

    Args:
        books: by the prefix of their store's keys.
        others: what a cursor before has of stores that are not recorded now.
    """
    kept = {prefix: book.to_values() for prefix, book in books.items()}
    return {"format": FORMAT, "stores": {**others, **kept}}


def stores_in(cursor: Mapping[str, Any] | None) -> Values:
    """Return what a cursor has of each store, by the prefix of its keys.

    Raises:
        DecodeError: it is not a recorder's, or of another version.
    """
    if not cursor:
        return {}
    if cursor.get("format") != FORMAT or not isinstance(cursor.get("stores"), dict):
        raise DecodeError(
            "the dataset was not written by this version's recorder: record into another one, "
            "with --name or --version"
        )
    return dict(cursor["stores"])
