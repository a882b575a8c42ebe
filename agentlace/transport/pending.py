"""What a producer has taken and the broker has not confirmed, oldest first."""

from __future__ import annotations

from collections import deque

from agentlace.codec import Frame
from agentlace.transport.recent import Sent


class Pending(deque[Sent]):
    """A queue of chunks and marks. Its owner holds a lock.

    Attributes:
        hold_from: if not None, what has this number or a later one is not sent.
    """

    hold_from: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether there is something to send."""
        return bool(self) and (self.hold_from is None or self[0].first < self.hold_from)

    def own(self, number: int) -> None:
        """Copy what comes after this number: its arrays may change from now on."""
        for sent in reversed(self):
            if sent.first <= number:
                return
            sent.frame = Frame([sent.frame.copy()], sent.frame.nbytes)

    def drop_oldest(self, max_numbers: int) -> int:
        """Remove the oldest that never was sent, until no more numbers are there.

        Returns:
            How many transitions that were. Consumers will find them missing.
        """
        excess = sum(sent.last - sent.first + 1 for sent in self) - max_numbers
        kept, dropped = [], 0
        for sent in self:
            if excess <= 0 or sent.is_out:
                kept.append(sent)
                continue
            excess -= sent.last - sent.first + 1
            dropped += sent.rows
        if len(kept) < len(self):
            self.clear()
            self.extend(kept)
        return dropped
