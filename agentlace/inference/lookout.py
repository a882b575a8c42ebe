"""What looks at the waiting calls while a function runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from agentlace.errors import AgentlaceError
from agentlace.inference.desk import Desk
from agentlace.inference.interface import Interface
from agentlace.inference.taker import Taker
from agentlace.logs import about
from agentlace.transport.backoff import Backoff
from agentlace.transport.keys import ServiceKeys

log = logging.getLogger(__name__)

LOOK_S = 0.002
"""So often it looks. A function that runs for less is not looked after."""
LONGEST_LOOK_S = 0.016
"""While it finds nothing it looks less and less often, down to this."""
IDLE_S = 0.5
"""After so long without a function that runs it sleeps."""
TIMEOUT_S = 1.0
"""The broker must answer within this: the server's own thread may wait for the same lock."""
JOIN_TIMEOUT_S = 5.0


class Lookout:
    """Takes requests while a function runs, in a thread of its own.

    So that those for which there is no room are refused at once, newer calls take the place of
    older ones, and clients take turns. What an idle server could have, it leaves alone: a server
    without anything to do waits at the list, and what is there has been left by all of them.

    Args:
        taker: with a channel of its own.
        keys: of the service.
        desk: the server's.
        interfaces: by name; others may add to them.
        others: returns how many other servers share the list.
    """

    def __init__(
        self,
        taker: Taker,
        keys: ServiceKeys,
        desk: Desk,
        interfaces: Mapping[str, Interface],
        others: Callable[[], int],
    ) -> None:
        self._taker = taker
        self._keys = keys
        self._desk = desk
        self._interfaces = interfaces
        self._others = others
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name=f"lookout {keys.name}", daemon=True
        )
        taker.channel.timeout_s = taker.channel.connect_timeout_s = TIMEOUT_S

    @property
    def is_asleep(self) -> bool:
        """Whether it must be woken when a function is called."""
        return not self._wake.is_set()

    def wake(self) -> None:
        """Have it look, until functions are no longer called."""
        self._wake.set()

    def start(self) -> None:
        """Start, once."""
        self._thread.start()

    def _watch(self) -> None:
        backoff, active_s, pause_s = Backoff(), 0.0, LOOK_S
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(pause_s)
            now, since = time.monotonic(), self._desk.running_since
            if since is not None:
                active_s = now
            elif now - active_s > IDLE_S:
                self._wake.clear()
            is_due = since is not None and now - since >= LOOK_S
            if self._stop.is_set() or not (is_due or not self._taker.is_settled):
                pause_s = LOOK_S
                continue
            try:
                pause_s = LOOK_S if self._look() else min(2 * pause_s, LONGEST_LOOK_S)
            except AgentlaceError as error:
                if backoff.is_news(error) and not self._stop.is_set():
                    text, fields = "%s cannot look at what waits: %s", self._keys.labels
                    log.warning(text, self._keys.name, error, extra=about(fields, error=error))
                self._stop.wait(backoff.next_s())
            else:
                backoff.reset()

    def _look(self) -> bool:
        """Take what waits at the broker, as far as it is wanted; returns whether anything does."""
        waiting = int(self._taker.channel.call("LLEN", self._keys.requests))
        with self._desk.lock:
            self._taker.settle()
            is_running = self._desk.running_since is not None
            left = self._wanted(waiting) if is_running and waiting else 0
            while left > 0 and (taken := self._taker.grab(left)):
                left -= taken
        return waiting > 0

    def _wanted(self, waiting: int) -> int:
        """Return how many of the calls that wait at the broker to take."""
        queued = [i for i in list(self._interfaces.values()) if i.is_queued]
        here = len(self._desk.queue)
        limits = [i.max_queue for i in queued if i.max_queue is not None]
        is_too_much = bool(limits) and here + waiting > min(limits)
        if not self._others() or is_too_much or any(i.newest_only for i in queued):
            return waiting
        batch = max((i.max_batch for i in queued if i.batch), default=1)
        return min(waiting, batch - here)

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT_S)
        self._taker.channel.close()
