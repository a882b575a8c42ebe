"""Pauses between attempts, and what is said of their failures."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_RANDOM = random.Random()
"""Not the module's own: a program that seeds that one gets the same numbers, whoever waits."""


class Backoff:
    """Growing pauses between attempts, with some randomness against stampedes."""

    def __init__(self, first_s: float = 0.05, limit_s: float = 1.0) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._next_s = first_s
        self._failure = ""

    def next_s(self) -> float:
        """Return the pause before the next attempt, in seconds."""
        pause = self._next_s
        self._next_s = min(self._limit_s, 2 * pause)
        return pause * _RANDOM.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Start small again, after a success."""
        self._next_s = self._first_s
        self._failure = ""

    def is_news(self, failure: Exception) -> bool:
        """Whether a failure differs from the one before: an outage needs one line in the log."""
        before, self._failure = self._failure, f"{type(failure)} {failure}"
        return before != self._failure


def insist(call: Callable[[], T], passing: type[Exception], deadline: float) -> T:
    """Return a call's result, trying again after errors that pass until a monotonic time."""
    backoff = Backoff()
    while True:
        try:
            return call()
        except passing:
            pause_s = backoff.next_s()
            if time.monotonic() + pause_s > deadline:
                raise
            threading.Event().wait(pause_s)


class Refrain:
    """Lets a message through once in a while, though its cause repeats with every call."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._said: tuple[type[BaseException], float] | None = None
        self._unsaid = 0

    def is_due(self, error: BaseException) -> bool:
        """Whether this error should be logged: it is of another kind, or the time has passed."""
        now = time.monotonic()
        if self._said and self._said[0] is type(error) and now < self._said[1] + self._every_s:
            self._unsaid += 1
            return False
        self._said = (type(error), now)
        return True

    def note(self) -> str:
        """Return what to add to a message: how often it was not said."""
        unsaid, self._unsaid = self._unsaid, 0
        return f" ({unsaid} times more since it was last said)" if unsaid else ""

    def reset(self) -> None:
        """Say the next one at once, after a success."""
        self._said, self._unsaid = None, 0
