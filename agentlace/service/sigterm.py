"""What is done before SIGTERM takes its way."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from agentlace.logs import about

log = logging.getLogger(__name__)


class OnSigterm:
    """Does something on SIGTERM, in a thread of its own, while the program goes on.

    Then the signal takes its way as if this were not here: the handler that was installed before
    is called, or the process ends. So does a second SIGTERM at once. A handler is only installed
    from the main thread.

    Args:
        work: what to do; what it raises is logged.
        what: how it is called in messages.
    """

    def __init__(self, work: Callable[[], object], what: str) -> None:
        self._work = work
        self._what = what
        self._before: Any = None
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """Take SIGTERM, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            log.info("no %s on SIGTERM: start() was not called in the main thread", self._what)
            return
        before = signal.getsignal(signal.SIGTERM)
        if before is None:
            text = "no %s on SIGTERM: a handler is installed that is no Python"
            log.warning(text, self._what, extra=about())
            return
        self._thread = None
        if before == self._on_signal:  # it could not be given back, from another thread
            return
        self._before = before
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._thread is None and self._before is not None:
            self._thread = threading.Thread(target=self._run, name=self._what)
            self._thread.start()
            return
        before = self._before
        self.give_back()
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            log.error("the %s on SIGTERM failed: %s", self._what, error, extra=about(error=error))
        os.kill(os.getpid(), signal.SIGTERM)

    def give_back(self) -> None:
        """Install the handler that was there before, unless another was installed since."""
        if self._before is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, self._before)
        self._before = None
