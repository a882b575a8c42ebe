"""What a producer has taken and the broker has not confirmed, oldest first."""

from __future__ import annotations

from collections import deque

from agentlace.codec import Frame
from agentlace.transport.held import MARK, Sent


class Pending(deque[Sent]):
    """A queue of chunks and marks, each with its numbers. Its owner holds a lock.

    Attributes:
        number: of the last transition or mark that was taken.
        hold_from: if not None, what has this number or a later one is not sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.hold_from: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether there is something to send."""
        return bool(self) and (self.hold_from is None or self[0].first < self.hold_from)

    @property
    def rows(self) -> int:
        """How many numbers wait, as far as another thread can tell."""
        try:
            return self.number - self[0].first + 1
        except IndexError:
            return 0

    def take(self, frame: Frame, rows: int) -> None:
        """Put transitions behind the others."""
        first, self.number = self.number + 1, self.number + rows
        self.append(Sent(first, self.number, frame))

    def take_mark(self, frame: Frame) -> None:
        """Put a mark behind the others; it takes the next number."""
        self.number += 1
        self.append(Sent(self.number, self.number, frame, field=MARK))

    def untake(self, number: int) -> None:
        """Give back what was taken after this number, unsent."""
        while self and self[-1].first > number:
            self.pop()
        self.number = number

    def discard_after(self, number: int) -> bool:
        """Drop what was taken after this number and never sent; returns whether that is all.

        What was sent, or may have been, keeps its number: a consumer may have it.
        """
        while self.number > number and self and not self[-1].is_out:
            self.number = self.pop().first - 1
        return self.number <= number

    def own(self, number: int) -> None:
        """Copy what comes after this number: its arrays may change from now on."""
        for sent in reversed(self):
            if sent.first <= number:
                return
            sent.own()

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
