"""Ctrl-C: a program ends within two seconds, with what there is of its results."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

INTERRUPTED = 130
PATIENCE_S = 1.0
SIGNAL_SLICE_S = 0.1


def run_interruptibly(
    work: Callable[[threading.Event], int | None],
    conclude: Callable[[], object],
    patience_s: float = PATIENCE_S,
) -> int:
    """Run in a thread until done or interrupted, then conclude; returns the exit status.

    In a thread, as JAX compiles for seconds and a client may wait for its server: neither hears
    of a signal.

    Args:
        work: gets an event that Ctrl-C or SIGTERM sets, and should return soon after.
        conclude: saves and prints what there is, of a whole run or of a part.
        patience_s: so long after an interrupt the work may take to return.
    """
    stop = stop_on_signals()
    running = ThreadPoolExecutor(1).submit(work, stop)
    while not (stop.is_set() or running.done()):
        wait([running], timeout=SIGNAL_SLICE_S)
    interrupted = stop.is_set()
    wait([running], timeout=patience_s)
    conclude()
    if not running.done():
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    return running.result() or (INTERRUPTED if interrupted else 0)


def stop_on_signals() -> threading.Event:
    """Return an event that Ctrl-C or SIGTERM sets; a second one ends the program at once."""
    stop = threading.Event()

    def interrupt(*_: object) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    return stop
