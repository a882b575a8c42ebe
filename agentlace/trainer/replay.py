"""A dataset sent to a trainer as if an actor were just recording it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from agentlace.data.columns import map_leaves
from agentlace.data.data_store import QueuedDataStore
from agentlace.data.steps import KNOWN, pair
from agentlace.data.tfds import columns_of
from agentlace.errors import ConfigMismatch, UnknownRequest
from agentlace.rlds.episode import STEP_KEYS, Episode
from agentlace.trainer.client import TrainerClient

Item = TypeVar("Item")

BATCH_MAX = 256
"""So many transitions are sent at once at most, however many are due."""
RETRY_S = 0.2
"""How long it waits before it tries again what the broker did not take."""


class Pace:
    """Deadlines at a fixed rate. A delay is caught up with, so that delays do not add up.

    Args:
        rate_hz: None has everything due at once.
        stop: ends each wait.
        clock: seconds, monotonic.

    Attributes:
        behind_s: the longest that something was late.
    """

    def __init__(
        self,
        rate_hz: float | None,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_hz, self._stop, self._clock = rate_hz, stop, clock
        self._began: float | None = None
        self._given = 0
        self.behind_s = 0.0

    def take(self, most: int) -> int:
        """Wait until the next is due; the first is at once.

        Returns:
            How many are due by then, from 1 to ``most``; 0 when it was stopped.
        """
        if self._rate_hz is None:
            due = math.inf
        else:
            began = self._began = self._clock() if self._began is None else self._began
            deadline = began + self._given / self._rate_hz
            self._stop.wait(max(0.0, deadline - self._clock()))
            now = self._clock()
            self.behind_s = max(self.behind_s, now - deadline)
            due = math.floor((now - began) * self._rate_hz) + 1 - self._given
        if self._stop.is_set():
            return 0
        taken = int(min(most, max(1, due)))
        self._given += taken
        return taken


@dataclass
class Replayed:
    """What was replayed.

    Attributes:
        episodes: that were sent whole.
        transitions: that the broker has.
        seconds: that it took.
        behind_s: the longest that a transition was late.
        confirmed: whether the trainer's store has all of them.
    """

    episodes: int = 0
    transitions: int = 0
    seconds: float = 0.0
    behind_s: float = 0.0
    confirmed: bool = False

    @property
    def rate_hz(self) -> float:
        """Transitions per second."""
        return self.transitions / self.seconds if self.seconds else 0.0


class Replay:
    """Sends episodes through a trainer client, with marks where they begin and end.

    Args:
        client: sends ``store``; its other stores are sent too.
        name: of the store at the trainer.
        store: what ``client`` sends from under that name. Nobody else inserts into it.
        rate_hz: transitions per second; as fast as the broker takes them if None.
        stop: set by anybody, ends the replay with the transition at hand.
        with_extras: send further entries of steps too, such as ``language_instruction``.
    """

    def __init__(
        self,
        client: TrainerClient,
        name: str,
        store: QueuedDataStore,
        rate_hz: float | None,
        stop: threading.Event,
        with_extras: bool = False,
    ) -> None:
        self._client, self._name, self._store, self._stop = client, name, store, stop
        self._with_extras = with_extras
        self._pace = Pace(rate_hz, stop)
        self._began = time.monotonic()
        self.replayed = Replayed()

    def run(self, episodes: Iterable[Episode]) -> Replayed:
        """Send episodes; returns when the trainer's store has them, or it was stopped.

        While the broker is away or has no room it waits, and then catches up. Where it is
        stopped within an episode, that one is ended as aborted.

        Raises:
            UnknownRequest: the trainer has no such store.
            ActorReplaced, ConfigMismatch: see :class:`TrainerClient`.
        """
        for episode, rows in _ahead((episode, self._rows(episode)) for episode in episodes):
            if not self._send_episode(episode, rows):
                break
        replayed = self.replayed
        replayed.confirmed = self._client.update_datastore(self._name, -1, confirm_update=True)
        replayed.seconds, replayed.behind_s = time.monotonic() - self._began, self._pace.behind_s
        return replayed

    def _send_episode(self, episode: Episode, rows: list[dict[str, Any]]) -> bool:
        """Send an episode; returns whether it was not stopped."""
        sent = 0
        self._client.begin_episode(dict(episode.metadata), store=self._name)
        while sent < len(rows) and (due := self._pace.take(min(len(rows) - sent, BATCH_MAX))):
            self._store.batch_insert(rows[sent : sent + due])
            if not self._send():
                break
            sent += due
            self.replayed.transitions += due
        is_whole = sent == len(rows)
        self._client.end_episode(episode.ending if is_whole else "aborted", store=self._name)
        self.replayed.episodes += is_whole
        return self._send() and is_whole

    def _rows(self, episode: Episode) -> list[dict[str, Any]]:
        """Return an episode's transitions as an actor inserts them."""
        steps = columns_of(episode)
        columns, at = pair(steps)
        if self._with_extras:
            others = {key: steps[key] for key in steps if key not in KNOWN | STEP_KEYS}
            columns |= map_leaves(lambda column: column[at], others)
        return [map_leaves(lambda column, i=i: column[i], columns) for i in range(len(at))]

    def _send(self) -> bool:
        """Send what was inserted, again and again until the broker has it or it was stopped."""
        while not self._client.update():
            error = self._client.last_error
            if isinstance(error, UnknownRequest | ConfigMismatch):
                raise error
            if self._stop.wait(RETRY_S):
                return False
        return True


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items of which the next is made in a thread while one is used."""
    thread = ThreadPoolExecutor(1, "agentlace-replay-read")
    try:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
