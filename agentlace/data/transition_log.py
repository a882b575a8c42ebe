"""Hands what a store takes on to a logger, so that episodes are recorded in the same process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from threading import RLock
from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import map_leaves
from agentlace.data.data_store import Refusals
from agentlace.data.ends import ending_of
from agentlace.data.rlds_writer import RLDSWriter, StepType
from agentlace.forks import freed_by_fork
from agentlace.logs import Refrain, about
from agentlace.rlds.episode import Ending

log = logging.getLogger(__name__)

LAST: dict[Ending | None, StepType] = {
    "terminated": StepType.TERMINATION,
    "truncated": StepType.TRUNCATION,
    "aborted": StepType.TRUNCATION,
    None: StepType.TRANSITION,
}


class TransitionLog:
    """Tells a logger of transitions, episode by episode; :func:`ending_of` finds their ends.

    What goes wrong in the logger is logged and keeps nothing from the store: it has the
    transition already.

    Args:
        logger: an :class:`~agentlace.data.rlds_writer.RLDSWriter`, or something that is called as
            ``logger(action=…, obs=…, reward=…, step_type=…)``: once with the first observation,
            a zero action and RESTART, then for each transition with its action, and the
            observation and reward that it brought.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._waiting: dict[Hashable, list[tuple[Mapping[str, Any], Ending | None]]] = {}
        self._begins = True
        self._lock = freed_by_fork(RLock())
        self._in_chunk = False
        self._refrain = Refrain()

    def add(self, row: Any, ends: bool = False) -> None:
        """Tell of a transition that the store has taken by itself, not in a chunk.

        Args:
            row: the transition.
            ends: whether it is the last of its episode, whatever it says.
        """
        with self._lock:  # another thread's, while a chunk is being inserted
            if not self._in_chunk:
                self._tell(row, None, ends)

    def add_chunk(self, chunk: Chunk, insert: Callable[[Chunk], Refusals]) -> Refusals:
        """Insert a chunk, and tell of what the store has taken of it.

        Episodes of several actors may be open at a time. A transition that is refused leaves a
        hole, which cuts its actor's.
        """
        actor = chunk.meta.get("actor")
        with self._lock:
            self._in_chunk = True
            try:
                refusals = insert(chunk)
            except Exception:
                self._cut(actor)
                raise
            finally:
                self._in_chunk = False
            for number, row in enumerate(chunk.rows()):
                if number in refusals:
                    self._cut(actor)
                else:
                    self._tell(row, actor)
            return refusals

    def _tell(self, row: Any, actor: Hashable, ends: bool = False) -> None:
        try:
            ending = ending_of(row, ends)
            if isinstance(self._logger, RLDSWriter):
                self._logger.add_transition(row, ending, actor)
            elif actor is None:
                self._call(row, ending)
            else:
                self._wait(row, ending, actor)
        except Exception as error:
            text = "the rlds_logger did not take a transition, which the store has"
            self._refrain.say(log.exception, error, text, extra=about(peer=actor, error=error))

    def _cut(self, actor: Hashable) -> None:
        """Tell that an actor's open episode, if there is one, does not go on."""
        try:
            if isinstance(self._logger, RLDSWriter):
                self._logger.end_episode("aborted", actor)
            elif actor is None:
                self._begins = True
            elif self._waiting.get(actor):
                row, _ = self._waiting[actor].pop()
                self._wait(row, "aborted", actor)
        except Exception as error:
            text = "the rlds_logger did not take the end of an episode"
            self._refrain.say(log.exception, error, text, extra=about(peer=actor, error=error))

    def _wait(self, row: Mapping[str, Any], ending: Ending | None, actor: Hashable) -> None:
        """Let an actor's transitions wait for the end: a logger knows one episode at a time."""
        rows = self._waiting.setdefault(actor, [])
        rows.append((map_leaves(np.array, row), ending))
        if ending is not None:
            self._begins = True
            for one in self._waiting.pop(actor):
                self._call(*one)

    def _call(self, row: Mapping[str, Any], ending: Ending | None) -> None:
        if self._begins:
            self._logger(
                action=map_leaves(np.zeros_like, row["actions"]),
                obs=row["observations"],
                reward=0.0,
                step_type=StepType.RESTART,
            )
        self._begins = ending is not None
        self._logger(
            action=row["actions"],
            obs=row["next_observations"],
            reward=row["rewards"],
            step_type=LAST[ending],
        )
