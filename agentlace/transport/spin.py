"""Waiting for an answer without sleeping, while answers are quick.

To wake a process that sleeps on an idle core takes the system 20 to 50 µs, more than everything
else that a hop of a small call takes. So a caller whose last answer came within SPIN_S looks for
the next one for so long before it sleeps. One whose answers take longer sleeps at once: at most
one wait in vain is spent on finding that out. Others that want the core get it, and other
threads of this process run meanwhile.
"""

from __future__ import annotations

import array
import os
import time

from agentlace import native

DEFAULT_US = 200
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
