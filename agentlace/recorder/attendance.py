"""Which actors are there, how far behind their streams the recorder is, and who is given up."""

from __future__ import annotations

import logging
import time

from agentlace.errors import AgentlaceError
from agentlace.logs import about
from agentlace.recorder.episodes import LEFT, VANISHED
from agentlace.recorder.scribe import Scribe
from agentlace.recorder.settings import Settings
from agentlace.recorder.watch import Seen, actors_of, lags_of, look, share_bytes
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import Broker
from agentlace.transport.keys import FENCE_MS, ServiceKeys
from agentlace.transport.presence import read_peer
from agentlace.transport.streams import START, StreamId, newest_id

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often the broker is asked about actors; less often where that takes long."""
LOOK_SHARE = 10
"""Asking takes no more than one part in so many of the time."""
FORGET_S = 2 * FENCE_MS / 1000
"""An actor of which nothing came for so long, and whose stream is gone, never comes back."""

Ahead = dict[str, dict[str, StreamId]]
"""By store and actor, a position that is to be reached."""


class Attendance:
    """Looks after actors, for the recorder's own thread.

    Args:
        broker: where.
        keys: the trainer's.
        scribe: whose actors they are.
        settings: of the recorder.

    Attributes:
        seen: what the broker said last, by store and actor.
    """

    def __init__(
        self, broker: Broker, keys: ServiceKeys, scribe: Scribe, settings: Settings
    ) -> None:
        self._keys = keys
        self._scribe = scribe
        self._settings = settings
        self._channel = broker.channel(key=keys.prefix)
        self._connects = 0
        self._backoff = Backoff()
        self._next = 0.0
        self._absent_since: dict[tuple[str, str], float] = {}
        self.seen: dict[str, dict[str, Seen]] = {store: {} for store in scribe.books}

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def warn_of_unknown_stores(self) -> None:
        """Say which stores the trainer does not know, if it is there: a name may be mistaken."""
        server = read_peer(self._channel, self._keys.server)
        known = sorted((server or {}).get("stores", {}))
        for store in self._scribe.books:
            if server is not None and store not in known:
                fields = about(self._keys.store(store).labels)
                log.warning("the trainer has no store %r, but %s", store, known, extra=fields)

    def check(self, now: bool = False) -> None:
        """End the open episodes of actors that are gone, if it is time to look."""
        began = time.monotonic()
        if not now and began < self._next:
            return
        try:
            self._channel.connect()
            if self._channel.connects != self._connects:  # they too may have lost it meanwhile
                self._connects = self._channel.connects
                self._absent_since.clear()
            for store in self._scribe.books:
                self._look_at(store)
            self._backoff.reset()
        except AgentlaceError as error:
            if self._backoff.is_news(error):
                fields = about(self._keys.labels, error=error)
                log.warning("the recorder waits for the broker: %s", error, extra=fields)
            self._next = time.monotonic() + self._backoff.next_s()
            return
        ended = time.monotonic()
        self._next = ended + max(LOOK_EVERY_S, LOOK_SHARE * (ended - began))

    def _look_at(self, store: str) -> None:
        keys, book = self._keys.store(store), self._scribe.books[store]
        share = share_bytes(self._channel, self._keys, keys)
        self._scribe.limit_open(store, min(self._settings.open_max_bytes, share // 2))
        with self._scribe.locked():
            positions = {actor: builder.newest for actor, builder in book.builders.items()}
        self.seen[store] = look(self._channel, self._keys, keys, positions)
        for actor, seen in self.seen[store].items():
            reason = self._reason_to_end(store, actor, seen)
            if reason and actor in positions and book.builders[actor].is_open:
                fields = about(keys.labels, peer=actor)
                text = "store %r: actor %r has %s in an episode"
                log.warning(text, store, actor, reason, extra=fields)
                self._scribe.abort(store, actor, reason)
        for key in [
            k for k in self._absent_since if k[0] == store and k[1] not in self.seen[store]
        ]:
            del self._absent_since[key]
        self._forget(store)

    def _reason_to_end(self, store: str, actor: str, seen: Seen) -> str:
        """Return why nothing more is expected of an actor of which all was read; else nothing."""
        if seen.is_there or seen.lag:
            self._absent_since.pop((store, actor), None)
        if seen.lag:
            return ""
        if seen.has_left:
            return LEFT
        if seen.is_there:
            return ""
        since = self._absent_since.setdefault((store, actor), time.monotonic())
        return VANISHED if time.monotonic() - since > self._settings.abort_after_s else ""

    def _forget(self, store: str) -> None:
        book, seen = self._scribe.books[store], self.seen[store]
        before_s = time.time() - FORGET_S
        old = [actor for actor, seen_s in list(book.seen_s.items()) if seen_s < before_s]
        gone = [a for a in old if not (a in seen and (seen[a].is_known or seen[a].is_there))]
        if gone:
            self._scribe.forget(store, gone)

    # -- catching up ---------------------------------------------------------------------------

    def ahead(self) -> Ahead:
        """Return the newest positions of all streams as they are now.

        Raises:
            AgentlaceError: the broker is away.
        """
        found: Ahead = {}
        for store in self._scribe.books:
            keys = self._keys.store(store)
            actors = actors_of(self._channel, keys)
            found[store] = {a: newest_id(self._channel, keys.stream(a)) for a in actors}
        return found

    def has_passed(self, ahead: Ahead) -> bool:
        """Whether everything up to these positions was read; those that were are taken out."""
        for store, goals in ahead.items():
            builders = self._scribe.books[store].builders
            at = {actor: builders[actor].newest for actor in goals if actor in builders}
            for actor in [a for a, position in at.items() if position >= goals[a]]:
                del goals[actor]
            positions = {actor: at.get(actor, START) for actor in goals}
            try:  # a stream may have a newest ID and no entries
                lags = lags_of(self._channel, self._keys.store(store), positions) if goals else {}
            except AgentlaceError:
                continue
            for actor in [actor for actor, lag in lags.items() if not lag]:
                del goals[actor]
        return not any(ahead.values())
