"""When a trainer saves: when its program says so, at an interval, on SIGTERM."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from agentlace.logs import about

log = logging.getLogger(__name__)

STOP, TERMINATE = "stop", "terminate"


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where and when a trainer saves by itself, and what.

    Attributes:
        path: of the folder; ``save()`` and ``restore()`` use it too.
        every_s: seconds from one save to the next; only on SIGTERM if None. The streams must
            hold what comes in that time.
        extra: called for each save that brings no ``extra`` of its own, in a thread of the
            trainer's; returns a tree, such as the agent's state. It must be safe to call while
            the program trains: return what is not changed in place.
        stores: names of the stores that are saved; all if None. The others are trimmed at the
            broker as if there were no checkpoint.
    """

    path: str | os.PathLike[str]
    every_s: float | None = 300.0
    extra: Callable[[], Any] | None = None
    stores: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.every_s is not None and self.every_s <= 0:
            raise ValueError(f"every_s={self.every_s} must be positive")


class SavingThread:
    """Saves in a thread of its own: at an interval, and on SIGTERM.

    On SIGTERM it saves while the program goes on, then the signal takes its way as if this were
    not here: the handler that was installed before is called, or the process ends. So does a
    second SIGTERM at once. A handler is only installed from the main thread.

    Args:
        save: saves; what it raises is logged.
        every_s: None for only on SIGTERM.
    """

    def __init__(self, save: Callable[[], object], every_s: float | None) -> None:
        self._save = save
        self._every_s = every_s
        # The only queue that a signal's handler may put into at any time.
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._before: Any = None
        self._is_terminating = False

    def start(self) -> None:
        """Begin, and take SIGTERM if this is the main thread."""
        self._thread.start()
        if threading.current_thread() is not threading.main_thread():
            log.info("SIGTERM does not save: start() was not called in the main thread")
            return
        before = signal.getsignal(signal.SIGTERM)
        if before is None:
            text = "SIGTERM does not save: a handler is installed that is not of Python"
            log.warning(text, extra=about())
            return
        self._before = before
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if not self._is_terminating and self._thread.is_alive():
            self._is_terminating = True
            self._orders.put(TERMINATE)
            return
        before = self._before
        self._give_back()
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)

    def _give_back(self) -> None:
        """Install the handler that was there before, unless another was installed since."""
        if self._before is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.signal(signal.SIGTERM, self._before)
        self._before = None

    def _run(self) -> None:
        due_s = float("inf") if self._every_s is None else time.monotonic() + self._every_s
        while True:
            try:
                wait_s = None if due_s == float("inf") else max(due_s - time.monotonic(), 0)
                order = self._orders.get(timeout=wait_s)
            except queue.Empty:
                order = ""
            if order == STOP:
                return
            try:
                self._save()
            except Exception as error:
                log.error("the checkpoint was not saved: %s", error, extra=about(error=error))
            if order == TERMINATE:
                os.kill(os.getpid(), signal.SIGTERM)
            if self._every_s is not None:
                due_s = time.monotonic() + self._every_s

    def stop(self) -> None:
        """End, after a save that is running, however long it takes; give SIGTERM back."""
        self._is_terminating = True  # a SIGTERM that comes now has nobody to save for it
        self._give_back()
        self._orders.put(STOP)
        if self._thread is not threading.current_thread():
            self._thread.join()
