"""What a recorder makes of an actor's stream, and how it counts that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from agentlace.rlds.episode import Ending
from agentlace.transport.streams import StreamId

CUT, GAP, VANISHED, LEFT, REPLACED = "cut", "gap", "vanished", "left", "replaced"
"""Why a part of an episode ends where its actor did not end it: it is too large to be kept in
memory; transitions are missing; its actor has not been seen for a while, has said goodbye, or
was started anew."""
GOES_ON = (CUT, VANISHED)
"""What follows after these is a further part of the same episode."""


@dataclass(frozen=True)
class Thread:
    """What ties the parts of one episode together.

    Attributes:
        id: position of the episode's first transition in its stream; None before there is one.
        part: number of the part, from 1.
        is_marked: whether the actor marked its beginning, so that only a mark ends it.
        number: as the marks count it; 0 if that is not known.
        metadata: that the actor gave so far.
    """

    id: StreamId | None = None
    part: int = 1
    is_marked: bool = False
    number: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """An episode that is over, or a part of one.

    Attributes:
        rows: its transitions; at least one.
        ending: how it ended; a part that was cut is truncated.
        thread: what it has in common with its other parts.
        reason: why it ends, if nobody ended it; empty else.
    """

    rows: list[Any]
    ending: Ending
    thread: Thread
    reason: str = ""


@dataclass
class Counts:
    """What became of one actor's episodes. They can be added.

    Attributes:
        sent: episodes that ended, as far as their actor or their transitions say.
        written: of these, the ones in the dataset, at least with their first part.
        quarantined: episodes, or parts, that did not fit.
        empty: episodes that ended without a transition.
        discarded: episodes that their actor took back.
        parts: entries in the dataset; more than episodes, if some were cut.
        steps: transitions in the dataset.
        lost: transitions and marks that never arrived.
    """

    sent: int = 0
    written: int = 0
    quarantined: int = 0
    empty: int = 0
    discarded: int = 0
    parts: int = 0
    steps: int = 0
    lost: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was sent is in the dataset."""
        return self.sent == self.written + self.empty and not self.quarantined and not self.lost

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both."""
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))

    def __sub__(self, other: Counts) -> Counts:
        """Return what has come since the others were counted."""
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Counts)))
