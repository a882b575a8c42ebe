"""Says how far something is that takes longer than a moment.

In the library, in the log (:class:`Logged`); a command passes a function that shows it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

FIRST_S = 2.0
"""What is done sooner is not mentioned."""
EVERY_S = 5.0

T = TypeVar("T")
Advance = Callable[[int], object]
"""Called with how much more is done."""


class Pace:
    """When something that goes on should be mentioned: after FIRST_S, then every EVERY_S."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._due = self._began + FIRST_S

    def is_due(self) -> bool:
        """Whether to mention it now."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + EVERY_S
        return True

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began


class Logged:
    """Logs how far something is, at its :class:`Pace`. For one thread.

    Args:
        log: where to.
        what: is being done, such as ``reading runs/1``.
        total: of what is counted.
        unit: of it, such as ``MB``.
        scale: so many of what is counted make one unit.
        level: WARNING if the program stands still meanwhile, so that it is seen without any
            setting.
    """

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        total: float,
        unit: str,
        scale: float = 1.0,
        level: int = logging.INFO,
    ) -> None:
        self._log = log
        self._what = what
        self._total = total
        self._unit = unit
        self._scale = scale
        self._level = level
        self._done = 0.0
        self._pace = Pace()

    def __call__(self, more: float) -> None:
        """Count what was done."""
        self._done += more
        if self._pace.is_due():
            done, total = self._done / self._scale, self._total / self._scale
            share = 100 * self._done / self._total if self._total else 100
            text = "%s: %s of %s %s, %.0f %%"
            numbers = f"{done:,.0f}", f"{total:,.0f}"
            self._log.log(self._level, text, self._what, *numbers, self._unit, share)


def counted(items: Iterable[T], advance: Advance) -> Iterator[T]:
    """Yield items, and count each as done when the next one is asked for."""
    for item in items:
        yield item
        advance(1)
