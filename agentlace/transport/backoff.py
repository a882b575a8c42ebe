"""Pauses between attempts, and whether their failures are news."""

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
