"""Observations that are published at a fixed rate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agentlace.transport.backoff import Refrain

log = logging.getLogger("agentlace.action")

JOIN_TIMEOUT_S = 5.0


class RatePublisher:
    """Captures and publishes at a fixed rate, in a thread of its own.

    The ticks lie on a grid of monotonic time, so that the rate does not drift. A tick that comes
    late is taken at once; one that is over when its turn comes is skipped.

    Args:
        rate_hz: ticks per second.
        capture: returns the observation, None if there is none.
        publish: called with the observation and the monotonic time before it was captured;
            returns whether it was published.

    Attributes:
        published: observations that the broker has.
        skipped: ticks that were over before their turn came.
        failed: ticks whose observation could not be captured or published.
    """

    def __init__(
        self,
        rate_hz: float,
        capture: Callable[[], Any],
        publish: Callable[[Any, float], bool],
    ) -> None:
        if not rate_hz > 0:
            raise ValueError(f"rate_hz={rate_hz} must be positive")
        self._period_s = 1 / rate_hz
        self._capture = capture
        self._publish = publish
        self._refrain = Refrain()
        self.stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.published = 0
        self.skipped = 0
        self.failed = 0

    def start(self) -> None:
        """Begin now."""
        self.stopping = threading.Event()
        args = (self.stopping,)
        self._thread = threading.Thread(
            target=self._run, args=args, name="publish obs", daemon=True
        )
        self._thread.start()

    def _run(self, stopping: threading.Event) -> None:
        start_s, tick = time.monotonic(), 0
        while not stopping.wait(max(0.0, start_s + tick * self._period_s - time.monotonic())):
            self._take(stopping)
            due = int((time.monotonic() - start_s) / self._period_s)
            self.skipped += max(0, due - tick - 1)
            tick = max(due, tick + 1)

    def _take(self, stopping: threading.Event) -> None:
        captured_s = time.monotonic()
        try:
            observation = self._capture()
            if observation is None or stopping.is_set():
                return
            is_published = self._publish(observation, captured_s)
        except Exception as error:
            is_published = False
            if self._refrain.is_due(error):
                log.exception("an observation was not published%s", self._refrain.note())
        self.published += is_published
        self.failed += not is_published

    def stop(self) -> None:
        """Stop; a capture that is running may finish first. Idempotent."""
        self.stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
