"""Whether there is a pause, as an actor's program sees it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from agentlace.errors import Closed
from agentlace.logs import about

log = logging.getLogger(__name__)

OnPause = Callable[[bool], object]
"""Called with whether there is a pause now, whenever that has changed."""


class PauseState:
    """Whether there is a pause, and which one the program has seen. Thread-safe.

    Args:
        expires_s: a pause ends by itself so long after it was last told; never if None.

    Attributes:
        since_s: when the present pause was told first, by the monotonic clock.
    """

    def __init__(self, expires_s: float | None = None) -> None:
        self.changed = threading.Condition()
        self._calling = threading.RLock()
        self.seen = ""
        self._expires_s = expires_s
        self._pause = ""
        self._told_s = 0.0
        self.since_s = 0.0
        self._closed = False
        self._callbacks: list[OnPause] = []

    def _remaining_s(self) -> float:
        """Return for how long the pause holds if nothing more is heard; 0 if there is none."""
        if not self._pause:
            return 0.0
        if self._expires_s is None:
            return threading.TIMEOUT_MAX
        return max(self._told_s + self._expires_s - time.monotonic(), 0.0)

    @property
    def pause(self) -> str:
        """Return the present pause, empty if there is none; the program is not told."""
        return self._pause if self._remaining_s() else ""

    def look(self) -> bool:
        """Return whether there is a pause, for the program, which has seen it then."""
        with self.changed:
            pause = self.pause
            if pause and pause != self.seen:
                self.seen = pause
                self.changed.notify_all()
            return bool(pause)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until there is no pause; returns whether there is none."""
        deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout_s is None else timeout_s)
        with self.changed:
            while self.look():
                if self._closed:
                    raise Closed("the client was stopped while it waited for the end of a pause")
                left_s = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
                if left_s <= 0:
                    return False
                self.changed.wait(min(left_s, self._remaining_s()))
        return True

    def register(self, callback: OnPause) -> bool:
        """Call back from now on; returns whether there is a pause now."""
        with self.changed:
            self._callbacks.append(callback)
            return bool(self.pause)

    def tell(self, pause: str) -> None:
        """Take over what the trainer says now, and call back if that is news."""
        with self.changed:
            before, self._pause, self._told_s = self._pause, pause, time.monotonic()
            if pause != before:
                self.since_s = self._told_s
            callbacks = list(self._callbacks)
            self.changed.notify_all()
        if pause == before:
            return
        self.call_back(callbacks)

    def call_back(self, callbacks: list[OnPause]) -> None:
        """Tell callbacks how it is; a pause that they were told of is seen."""
        with self._calling:  # so that the newest state is told last
            pause = self._pause
            for callback in callbacks:
                try:
                    callback(bool(pause))
                except Exception as error:
                    log.exception("what on_pause registered raised", extra=about(error=error))
        if callbacks and pause:
            with self.changed:
                self.seen = pause
                self.changed.notify_all()

    def expire(self) -> None:
        """Call back if the pause has ended by itself."""
        if self._pause and not self.pause:
            text = "the trainer that paused has not been heard: its pause is over"
            log.warning(text, extra=about())
            self.tell("")

    def wait_until_seen(self, timeout_s: float) -> bool:
        """Wait until the program has seen the present pause; returns whether it has."""
        with self.changed:
            return self.changed.wait_for(lambda: self.seen == self._pause, timeout_s)

    def close(self) -> None:
        """Wake those who wait, with Closed."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()


class Pausable:
    """What an actor's program asks, whatever tells of a pause."""

    def _pause_state(self) -> PauseState:
        raise NotImplementedError

    @property
    def is_paused(self) -> bool:
        """Whether the trainer has paused its actors. Does not wait for the broker.

        The trainer counts an actor that was told so as standing still.

        Raises:
            Closed: the client was stopped.
        """
        return self._pause_state().look()

    def wait_while_paused(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of a pause; returns at once if there is none.

        A pause ends with :meth:`TrainerServer.resume_actors`, or when its trainer is gone, or was
        not heard for five seconds (LEASE_MS).

        Args:
            timeout_s: seconds to wait at most; without end if None.

        Returns:
            Whether there is no pause (any more).

        Raises:
            Closed: the client was stopped meanwhile.
        """
        return self._pause_state().wait(timeout_s)

    def on_pause(self, callback: OnPause) -> None:
        """Call ``callback(True)`` when a pause begins and ``callback(False)`` when it ends.

        It is called in a thread of the client's, and in this one if there is a pause now. The
        trainer counts the actor as standing still once it has returned.
        """
        state = self._pause_state()
        if state.register(callback):
            state.call_back([callback])
