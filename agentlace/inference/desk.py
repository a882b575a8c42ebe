"""Where calls wait: what the threads of an inference server share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from agentlace.codec import Frame
from agentlace.errors import SchemaMismatch
from agentlace.inference.batching import structure_of
from agentlace.inference.call_queue import BUSY, CallQueue, Waiting
from agentlace.inference.execution import Answered
from agentlace.inference.interface import Interface
from agentlace.inference.traffic import Traffic
from agentlace.transport.request_frames import Failures, Request, failure


class Desk:
    """What waits, and how it is refused. Its lock guards all that it has.

    Args:
        interfaces: by name; others may add to them.
        answer: answers what calls no interface: it asks what there is.
        is_expired: whether a request is to be dropped; it counts that.

    Attributes:
        lock: held by whoever takes requests, or looks at what waits while a function runs.
        queue: what waits.
        running_since: when the function that runs was called, in monotonic seconds, or None.
        refused: calls that were told that the server is busy,
        superseded: and those whose place a newer one took.
    """

    def __init__(
        self,
        interfaces: Mapping[str, Interface],
        answer: Callable[[Request], Frame],
        is_expired: Callable[[Request], bool],
        failures: Failures,
    ) -> None:
        self._failures = failures
        self._interfaces = interfaces
        self._answer = answer
        self._is_expired = is_expired
        self._traffic: dict[str, Traffic] = {}
        self.lock = threading.RLock()
        self.queue = CallQueue()
        self.running_since: float | None = None
        self.refused = 0
        self.superseded = 0

    def interface_of(self, request: Request) -> Interface | None:
        """Return what a request calls; None if it calls nothing that there is."""
        return self._interfaces.get(request.call.name) if request.call.what == "call" else None

    def traffic(self, name: str) -> Traffic:
        """Return who calls an interface."""
        traffic = self._traffic.get(name)
        if traffic is None:
            traffic = self._traffic[name] = Traffic()
        return traffic

    def enter(self, request: Request) -> list[Answered]:
        """Let a request wait; returns all that need not wait any longer, with their answers."""
        interface = self.interface_of(request)
        if interface is None:
            return [(request, self._answer(request))]
        if self._is_expired(request):
            return [(request, None)]
        if interface.batch:  # the others are checked when it is their turn
            try:
                interface.shapes.check(request.payload)
            except SchemaMismatch as error:
                return [(request, self._failures.reply(request.call, request.number, error))]
        self.traffic(interface.title).note(request.caller, time.monotonic())
        structure = structure_of(request.payload) if interface.batch else None
        waiting = Waiting(request, interface, (interface.title, structure))
        refusals = self.queue.add(waiting)
        for _, kind, _ in refusals:
            self.refused += kind == BUSY
            self.superseded += kind != BUSY
        return [
            (waiting.request, failure(waiting.request.number, kind, text, kind.lower()))
            for waiting, kind, text in refusals
        ]
