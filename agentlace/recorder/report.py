"""How a recorder stands, and what became of all that was sent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentlace.recorder.episodes import Counts
from agentlace.recorder.scribe import Scribe

if TYPE_CHECKING:
    from agentlace.recorder.attendance import Attendance


@dataclass(frozen=True)
class ActorStatus:
    """One actor of one store.

    Attributes:
        store: name of the store.
        actor: identity of the actor; empty for all that are no longer kept one by one.
        counts: what became of its episodes since the recorder was started.
        open_rows: transitions of its open episode.
        lag: numbers in its stream that were not read yet.
        is_there: whether it shows signs of life.
    """

    store: str
    actor: str
    counts: Counts
    open_rows: int
    lag: int
    is_there: bool


@dataclass(frozen=True)
class Status:
    """A recorder at one moment.

    Attributes:
        episodes: in the dataset.
        steps: in the dataset; an episode of N transitions has N+1.
        nbytes: of the dataset.
        added: entries of the dataset since the recorder was started.
        committed_ago_s: seconds since the last commit, or since the start.
        actors: of whom something is known.
    """

    episodes: int
    steps: int
    nbytes: int
    added: int
    committed_ago_s: float
    actors: list[ActorStatus]

    @property
    def counts(self) -> Counts:
        """What became of all episodes since the recorder was started."""
        return sum((actor.counts for actor in self.actors), Counts())

    @property
    def is_complete(self) -> bool:
        """Whether all that was sent since the start is in the dataset, by all accounts."""
        return self.counts.is_complete and self.added == self.counts.parts

    @property
    def lag(self) -> int:
        """Numbers that were not read yet, of all actors."""
        return sum(actor.lag for actor in self.actors)


class Report:
    """Tells what has come since it was made."""

    def __init__(self, scribe: Scribe) -> None:
        self._before = scribe.counts()
        self._episodes = scribe.writer.episodes

    def status(self, scribe: Scribe, attendance: Attendance | None) -> Status:
        """Return how things stand now."""
        with scribe.locked():
            counts, writer = scribe.counts(), scribe.writer
            actors = [
                self._actor(scribe, attendance, store, actor, found)
                for store, by_actor in counts.items()
                for actor, found in sorted(self._since_start(store, by_actor).items())
            ]
            return Status(
                *(writer.episodes, writer.steps, writer.nbytes),
                writer.episodes - self._episodes,
                time.monotonic() - scribe.committed_s,
                [a for a in actors if a.actor or a.counts != Counts()],
            )

    def _since_start(self, store: str, counts: Mapping[str, Counts]) -> dict[str, Counts]:
        before = self._before[store]
        since = {actor: now - before.get(actor, Counts()) for actor, now in counts.items()}
        for actor in before.keys() - counts.keys():  # the forgotten ones have them now
            since[""] -= before[actor]
        return since

    def _actor(
        self, scribe: Scribe, attendance: Attendance | None, store: str, actor: str, counts: Counts
    ) -> ActorStatus:
        builder = scribe.books[store].builders.get(actor)
        seen = attendance.seen[store].get(actor) if attendance else None
        return ActorStatus(
            *(store, actor),
            counts,
            len(builder.rows) if builder else 0,
            seen.lag if seen else 0,
            bool(seen and seen.is_there),
        )
