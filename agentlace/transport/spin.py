"""Waiting for an answer without sleeping, while answers are quick.

To wake a process that sleeps on an idle core takes the system 20 to 50 µs, more than everything
else that a hop of a small call takes. So a caller whose answers come within SPIN_S looks for the
next one for so long before it sleeps. One whose answers take longer sleeps at once. Others that
want the core get it, and other threads of this process run meanwhile.
"""

from __future__ import annotations

import array
import os
import time

from agentlace import native

DEFAULT_US = 500
VARIABLE = "AGENTLACE_SPIN_US"


def _setting() -> int:
    """Return for how many microseconds to look; 0 where nobody else could answer meanwhile."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = os.environ.get(VARIABLE, "")
    if cores == 1 or not hasattr(os, "sched_yield"):
        return 0
    return int(told) if told.isdecimal() else DEFAULT_US


SPIN_US = _setting()
SPIN_S = SPIN_US / 1e6
SLEPT = 2
"""An answer that was slept for takes up to so many times as long as one that was looked for."""
RESTS = 64
"""After a look in vain, so many answers in doubt are slept for: looking may not be of use."""


def _spin(fd: int, least: int, micros: int) -> None:
    """Do as :func:`agentlace.native.spin`."""
    import fcntl
    import termios

    there, end = array.array("i", [0]), time.perf_counter() + micros / 1e6
    while time.perf_counter() < end:
        fcntl.ioctl(fd, termios.FIONREAD, there)
        if there[0] >= least:
            return
        os.sched_yield()


spin = native.spin or _spin
"""Wait without sleeping until so many bytes can be read, for so many microseconds at most."""


class Habit:
    """Whether a caller looks for its answers before it sleeps, by how long they took so far.

    Attributes:
        micros: how long to look for the next one; 0: not at all.
    """

    def __init__(self) -> None:
        self.micros = 0
        self._rests = 0

    def note(self, took_s: float) -> None:
        """Take note how long an answer took."""
        if took_s < SPIN_S:
            self.micros = SPIN_US
        elif self.micros:
            self.micros, self._rests = 0, RESTS
        elif took_s < SLEPT * SPIN_S:
            self._rests -= 1
            if self._rests < 0:
                self.micros = SPIN_US
