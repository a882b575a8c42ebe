"""An actor says where its episodes begin and end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from agentlace.codec import Mark
from agentlace.codec.mark import ABORTED, BEGIN, DISCARD, END, HOWS
from agentlace.errors import AgentlaceError, EncodeError, UnknownRequest
from agentlace.logs import about
from agentlace.trainer.outbox import Outbox

log = logging.getLogger(__name__)

Put = Callable[[Outbox, Mark, Mapping[str, Any]], EncodeError | None]


class EpisodeMarks:
    """The part of an actor's connection that marks episodes.

    A mark sits exactly behind the transitions that were inserted when it was made, and goes to
    the broker with the next ``update()``, or with ``stop()``. Making one needs no broker, and
    blocks only while another thread is in ``update()``. A program without marks is fine too: a
    recorder then takes an episode's end from ``dones``, ``masks`` and the like.
    """

    _outboxes: dict[str, Outbox]
    _update_lock: threading.RLock

    def begin_episode(
        self, metadata: Mapping[str, Any] | None = None, store: str | None = None
    ) -> None:
        """Begin an episode: what is inserted from now on belongs to it.

        An episode that was begun and not ended before ends here, however its last transition
        says.

        Args:
            metadata: of the episode, by name: anything that may travel, at most 1 MiB. A recorder
                keeps it as ``episode_metadata``.
            store: of which store; None for all stores of this client.

        Raises:
            EncodeError: the metadata may not travel, and nothing was marked; or a transition that
                was inserted before may not, and was left out.
            UnknownRequest: this client has no such store.
            Closed: after ``stop()``.
        """
        self._put(Outbox.begin, Mark(BEGIN, None, 0, time.time(), metadata or {}), store)

    def end_episode(
        self, how: str, metadata: Mapping[str, Any] | None = None, store: str | None = None
    ) -> None:
        """End the running episode with the transitions that were inserted so far.

        Without a :meth:`begin_episode`, the episode is what came since the one before.

        Args:
            how: ``terminated`` by the environment, ``truncated`` by a limit, or ``aborted``.
            metadata: as for :meth:`begin_episode`; of the same names, the later one counts.
            store: as for :meth:`begin_episode`.

        Raises:
            ValueError: no such ``how``.
            EncodeError, UnknownRequest, Closed: as for :meth:`begin_episode`.
        """
        if how not in HOWS:
            raise ValueError(f"an episode does not end {how!r}: use one of {', '.join(HOWS)}")
        self._put(Outbox.end, Mark(END, how, 0, time.time(), metadata or {}), store)

    def discard_episode(self, store: str | None = None) -> None:
        """Drop the running episode, before it becomes data.

        Its transitions that were not sent yet are never sent. If some were, recorders are told to
        drop the episode; but a trainer's replay store keeps what it has taken. With
        ``hold_episodes`` nothing of a running episode is sent, so nobody ever has any of it.

        Args:
            store: as for :meth:`begin_episode`.

        Raises:
            AgentlaceError: no episode was begun.
            UnknownRequest, Closed: as for :meth:`begin_episode`.
        """
        self._put(Outbox.discard, Mark(DISCARD, None, 0, time.time()), store)

    def _put(self, put: Put, mark: Mark, store: str | None) -> None:
        self._check_usable()
        if store is not None and store not in self._outboxes:
            raise UnknownRequest(
                f"this client has no store {store!r}, but {sorted(self._outboxes)}"
            )
        boxes = list(self._outboxes.values()) if store is None else [self._outboxes[store]]
        with self._update_lock:
            meta = self._chunk_meta()
            refused = [put(box, mark, meta) for box in boxes]
        for error in refused:
            if error is not None:
                raise error

    def _end_held(self) -> None:
        """Break off what an ending program holds back, so that it is sent."""
        held = [box for box in self._outboxes.values() if box.holds and box.begun_at is not None]
        for box in held:
            with self._update_lock:
                try:
                    box.end(Mark(END, ABORTED, 0, time.time()), self._chunk_meta())
                except AgentlaceError as error:
                    fields = about(store=box.name, error=error)
                    text = "store %r: its episode was not ended: %s"
                    log.error(text, box.name, error, extra=fields)

    def _check_usable(self) -> None:
        raise NotImplementedError

    def _chunk_meta(self) -> dict[str, Any]:
        raise NotImplementedError
