"""``update()`` in a thread of its own, again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agentlace.errors import (
    AgentlaceError,
    BrokerUnreachable,
    Closed,
    EncodeError,
    PeerAbsent,
    RateLimited,
    RequestTimeout,
    StoreFull,
    UnknownRequest,
)
from agentlace.logs import Refrain, about

log = logging.getLogger(__name__)

FALSE_ERRORS = (
    BrokerUnreachable,
    Closed,
    PeerAbsent,
    RateLimited,
    RequestTimeout,
    StoreFull,
    UnknownRequest,
)
"""Errors for which ``update()`` returns False, unless ``strict``; nothing is lost by them."""


class AsyncUpdate:
    """Calls ``update`` at an interval until it is stopped, or another actor has taken over."""

    def __init__(self, update: Callable[[], object]) -> None:
        self._update = update
        self._stop = threading.Event()
        self._refrain = Refrain()
        self._thread: threading.Thread | None = None

    @property
    def was_started(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._thread is not None

    def start(self, interval_s: float) -> None:
        """Begin, unless it runs already."""
        if self._thread is None or not self._thread.is_alive():
            args = (interval_s,)
            thread = threading.Thread(target=self._run, args=args, name="async update", daemon=True)
            self._thread = thread
            thread.start()

    def _run(self, interval_s: float) -> None:
        while True:
            try:
                self._update()
            except (EncodeError, *FALSE_ERRORS) as error:  # the latter if the client is strict
                self._refrain.say(log.error, error, "%s", error, extra=about(error=error))
            except AgentlaceError as error:
                log.error("the asynchronous update ends: %s", error, extra=about(error=error))
                return
            if self._stop.wait(interval_s):
                return

    def stop(self, timeout_s: float) -> None:
        """Stop; an update that is running may finish first."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
