"""The action watchdog: calls back when no action comes any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from agentlace.errors import Closed

log = logging.getLogger("agentlace.action")

JOIN_TIMEOUT_S = 5.0


class Watchdog:
    """Calls back once when no action came for a while; again after the next silence.

    The first action arms it. Silence begins when an action's handler has returned. The callback
    runs in the watchdog's own thread and waits for nothing; an action that comes meanwhile
    waits until it has returned. A context manager: the block executes an action.

    Args:
        timeout_s: the silence, in seconds.
        callback: what to do.
    """

    def __init__(self, timeout_s: float, callback: Callable[[], object]) -> None:
        if not timeout_s > 0:
            raise ValueError(f"the time without an action must be positive, not {timeout_s} s")
        self._timeout_s = timeout_s
        self._callback = callback
        self._changed = threading.Condition()
        self._is_armed = self._is_acting = self._is_calling = False
        self._is_ended = True
        self._silent_since_s = 0.0
        self._thread: threading.Thread | None = None
        self.calls = 0

    def start(self) -> None:
        """Begin to watch, unarmed."""
        self._is_armed = self._is_acting = self._is_ended = False
        self._thread = threading.Thread(target=self._run, name="watch actions", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        """Begin an action.

        Raises:
            Closed: the server was stopped while the action waited for the callback.
        """
        with self._changed:
            while self._is_calling:
                if self._is_ended:
                    raise Closed("the server was stopped before this action was executed")
                self._changed.wait()
            self._is_acting = True

    def __exit__(self, *_: object) -> None:
        """End an action."""
        with self._changed:
            self._is_acting = False
            self._silent_since_s = time.monotonic()
            if not self._is_armed:
                self._is_armed = True
                self._changed.notify_all()

    def _run(self) -> None:
        while self._waited():
            try:
                self._callback()
                log.warning("no action for %.0f ms: the watchdog called", self._timeout_s * 1000)
            except Exception:
                log.exception("the callback of the action watchdog raised")
            with self._changed:
                self.calls += 1
                self._is_calling = False
                self._changed.notify_all()

    def _waited(self) -> bool:
        """Wait for a silence; False at the end."""
        with self._changed:
            while not self._is_ended:
                left_s = self._silent_since_s + self._timeout_s - time.monotonic()
                is_over = left_s <= 0
                if self._is_armed and not self._is_acting and is_over:
                    self._is_armed, self._is_calling = False, True
                    return True
                # A running action moves the moment; without one there is nothing to wait for.
                until_s = self._timeout_s if is_over else left_s
                self._changed.wait(until_s if self._is_armed else None)
            return False

    def end(self) -> None:
        """Stop watching; a callback that is running may finish first."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT_S)
