"""Exclusive control as a client sees it: its wish, and whether it has what it wishes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agentlace.action.control import ABSENCES, CONTROL, GRANTED, RELEASE, TAKE, Holder
from agentlace.errors import (
    AgentlaceError,
    BrokerUnreachable,
    Closed,
    ControlHeld,
    PeerAbsent,
    RequestTimeout,
)
from agentlace.transport import presence
from agentlace.transport.keys import HEARTBEAT_S, LEASE_MS

log = logging.getLogger("agentlace.action")

RETRY_S = 0.1
LOG_S = 5.0
UNANSWERED = (BrokerUnreachable, PeerAbsent, RequestTimeout)
REQUEST_S = 1.0
DOUBTS = 2
"""What a server says may be older than its last answer, so that one look is not enough."""
FORGOTTEN_S = LEASE_MS / 1000 + (ABSENCES + 1) * HEARTBEAT_S
"""After so long a server knows that a client which had control is gone."""


class Claim:
    """A client's wish for control, and whether it has it.

    Threads: the program takes and releases, the heartbeat looks whether it was lost.

    Args:
        name: of the service.
        request: sends TAKE or RELEASE with a payload and a timeout in seconds.
        me: what the server should know: name, host and pid.
        stopping: ends waiting.
    """

    def __init__(
        self,
        name: str,
        request: Callable[[str, Any, float], Any],
        me: dict[str, Any],
        stopping: threading.Event,
    ) -> None:
        self._name = name
        self._request = request
        self._me = me
        self._stopping = stopping
        self._lock = threading.Lock()
        self._doubts = 0
        self._may_be_held = False
        self.is_wanted = False
        self.is_lost = False

    @property
    def is_held(self) -> bool:
        """Whether this client has control, as far as it knows."""
        return self.is_wanted and not self.is_lost

    def take(self, timeout_s: float, request_s: float) -> None:
        """Take control, waiting while another client has it or the server does not answer.

        Raises:
            ControlHeld: another client had it when the time was over.
            Closed: the client was stopped meanwhile.
            AgentlaceError: the server cannot give control; or what any request raises.
        """
        now_s = time.monotonic()
        deadline_s, next_log_s = now_s + timeout_s, now_s + LOG_S
        while True:
            try:
                with self._lock:
                    self._ask(request_s)
                return
            except (ControlHeld, *UNANSWERED) as error:
                now_s = time.monotonic()
                if now_s >= deadline_s:
                    raise
                if now_s > next_log_s:
                    log.warning("waiting: %s", error)
                    next_log_s = now_s + LOG_S
            if self._stopping.wait(RETRY_S):
                raise Closed(f"this client of {self._name} was stopped")

    def _ask(self, request_s: float) -> None:
        self._may_be_held = True  # also if no answer comes
        try:
            answer = self._request(TAKE, self._me, request_s)
        except ControlHeld:
            self._may_be_held = False
            raise
        if answer != GRANTED:
            self._may_be_held = False
            raise AgentlaceError(
                f"the server of {self._name} gives no exclusive control: "
                "it runs an earlier version of agentlace"
            )
        self.is_wanted, self.is_lost, self._doubts = True, False, 0

    def retake(self, request_s: float) -> None:
        """Take control again if it was lost; raises as :meth:`take`."""
        with self._lock:
            if self.is_lost:
                self._ask(request_s)
                log.warning("%s: this client has control again", self._name)

    def release(self, request_s: float) -> None:
        """Let others drive; raises what a request raises. Without effect if it has no control."""
        if not self._lock.acquire(timeout=request_s):  # another thread waits for an answer
            raise RequestTimeout("release control", request_s)
        try:
            self.is_wanted = self.is_lost = False
            if self._may_be_held:
                self._request(RELEASE, {}, request_s)
                self._may_be_held = False
        finally:
            self._lock.release()

    def look(self, caller: str, server: presence.Info | None) -> None:
        """Compare with what the server says; at each heartbeat."""
        if server is None or not (self._may_be_held or self.is_wanted):
            return
        holder = Holder.told(server.get(CONTROL))
        is_mine = holder is not None and holder.caller == caller
        self._doubts = 0 if is_mine == self.is_wanted else self._doubts + 1
        if self._doubts < DOUBTS:
            return
        self._doubts = 0
        with contextlib.suppress(AgentlaceError):  # the next beat, or the next action, tries again
            if is_mine:  # nobody asked for it any more, or its answer did not come in time
                self.release(REQUEST_S)
            elif self.is_wanted:
                self._note_lost()
                self.retake(REQUEST_S)

    def _note_lost(self) -> None:
        with self._lock:
            if self.is_wanted and not self.is_lost:
                self.is_lost = True
                log.warning("%s: this client has lost control", self._name)
