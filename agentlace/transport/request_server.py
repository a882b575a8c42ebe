"""The answering end of requests; :mod:`agentlace.transport.requests` says how they travel."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from agentlace.codec import Frame
from agentlace.codec.unstamped import stamp_in
from agentlace.errors import AgentlaceError, Closed
from agentlace.logs import Refrain, about
from agentlace.transport import facts
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import MARGIN_S, Broker
from agentlace.transport.envelope import Envelope
from agentlace.transport.inflight import NOWHERE, Intake
from agentlace.transport.keys import REPLY_MS, ServiceKeys
from agentlace.transport.remembered import Remembered
from agentlace.transport.request_frames import (
    REQUEST_STAMP,
    Call,
    Failures,
    Request,
    RequestReader,
    failure,
    keep,
)
from agentlace.transport.resp import Command, ErrorReply

log = logging.getLogger(__name__)

AT_MOST_ONCE = frozenset({"act", "request"})
"""Kinds of request that are never executed twice; all others are pure and may be."""
CALLERS = 1024
"""To so many callers the commands around a reply are kept packed."""
LAST_ATTEMPTS = 2
JOIN_TIMEOUT_S = 5.0

Handler = Callable[[str, str, Any], Any]
"""Called with what (``act``), its name (the key) and its payload; returns the reply's tree, or an
Answer."""


class Outgoing(NamedTuple):
    """What answers a request, and the place that it had."""

    envelope: Envelope
    frame: Frame
    place: int


class RequestServer:
    """Answers a service's requests, one after the other, in one thread.

    Args:
        broker: where.
        keys: which service.
        handler: what to do; an exception is answered to the caller and logged here.
        token: this server's identity.
        intake: how requests are taken; popped, if it is not told.

    Attributes:
        caller: who has sent the request that is being handled.
    """

    def __init__(
        self,
        broker: Broker,
        keys: ServiceKeys,
        handler: Handler,
        token: str,
        intake: Intake | None = None,
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._handler = handler
        self._token = token
        self._intake = intake or Intake(keys)
        self._channel = broker.channel(key=keys.prefix)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._runner: threading.Thread | None = None
        self._done = threading.Event()
        self._is_ending = False
        self._remembered = Remembered()
        self._refrain = Refrain()
        self._backoff = Backoff()
        self._reader = RequestReader()
        self._failures = Failures(keys.labels)
        self._envelopes: dict[tuple[bytes, int, int], Envelope] = {}
        self._place = self._intake.take()
        self._dropped: list[int] = []
        self._run = ""
        self._connects = 0
        self.caller = b""
        self.answered = 0
        self.expired = 0
        self.unreadable = 0

    def start(self) -> None:
        """Serve in a thread of its own."""
        name = f"serve {self._keys.name}"
        thread = threading.Thread(target=self.run, name=name, daemon=True)
        thread.start()
        self._thread = self._runner = thread

    def run(self) -> None:
        """Serve in this thread until :meth:`stop` is called from another one or a handler."""
        self._runner = threading.current_thread()
        try:
            self._serve()
        finally:
            self._channel.close()
            self._done.set()

    def _serve(self) -> None:
        answer: Outgoing | None = None
        while not self._stop.is_set():
            try:
                data, place, answer = self._wait(answer)
            except Closed:
                return
            if data is not None:
                answer = self._answer(data, place)
        self._send_last(answer)

    def _wait(self, answer: Outgoing | None) -> tuple[Any, int, Outgoing | None]:
        """Send the last answer and wait for a request.

        Returns:
            A request's bytes, or None after a slice; its place; and the answer, if it could not
            be sent: then it was tried, and the pause before the next attempt is over.
        """
        try:
            data = self._next(answer)
        except Closed:
            raise
        except AgentlaceError as error:
            self._note_trouble(error)
            return None, NOWHERE, answer
        self._backoff.reset()
        place = self._place
        if place != NOWHERE:
            if answer is not None:
                self._intake.free((answer.place,))
            if data is not None:
                self._place = self._intake.take()
        return data, place, None

    def _note_trouble(self, error: AgentlaceError) -> None:
        """Say that the broker is away, and pause before the next attempt."""
        if self._backoff.is_news(error) and not self._stop.is_set():
            text = "%s waits for the broker: %s"
            log.warning(text, self._keys.name, error, extra=self._about(error))
        self._stop.wait(self._backoff.next_s())

    def _next(self, answer: Outgoing | None) -> Any:
        """Send the last answer and wait for a request, in one write; None after a slice.

        A refused answer is only logged: a request may have been popped right behind it.
        """
        channel = self._channel
        timeout_s = channel.slice_s + MARGIN_S
        if not channel.is_connected or channel.connects != self._connects:
            self._meet_broker()
        if answer is None:
            self._broker.follow_clock(channel)
            return self._pop(timeout_s)
        data = channel.trade(answer.envelope, answer.frame, timeout_s)
        if data is not None:
            return data
        for _ in range(answer.envelope.replies - 1):
            self._note_refusal(channel.receive(timeout_s))
        return self._intake.popped(channel.checked([channel.receive(timeout_s)])[0])

    def _pop(self, timeout_s: float) -> Any:
        """Wait for a request, after removing those that need no answer."""
        channel, intake, dropped = self._channel, self._intake, self._dropped
        commands = [*intake.drop(dropped), intake.pop(self._place, channel.slice_s)]
        popped = channel.checked(channel.exchange(commands, timeout_s))[-1]
        intake.free(dropped)
        self._dropped = []
        return intake.popped(popped)

    def _meet_broker(self) -> None:
        """Find out which run of the broker it is, whenever it is connected anew."""
        channel = self._channel
        channel.connect()
        self._run = facts.run_of(channel)
        self._intake.begin(channel, self._place)
        if self._place == NOWHERE:
            self._place = self._intake.take()
        self._envelopes.clear()
        self._connects = channel.connects

    def _note_refusal(self, reply: Any) -> None:
        if isinstance(reply, ErrorReply):
            text, fields = "%s could not send a reply: %s", self._about(reply)
            self._refrain.say(log.error, reply, text, self._keys.name, reply, extra=fields)

    def _send_last(self, answer: Outgoing | None) -> None:
        """Send the last answer, and give back what may have been taken in the last moment."""
        commands: list[Command] = self._intake.give_back([self._place])
        if answer is not None:
            commands = [*answer.envelope.commands(answer.frame)[:-1], *commands]
        if not commands:
            return
        self._is_ending = True  # from here on stop() does not wake this thread any more
        error: AgentlaceError | None = None
        for _ in range(LAST_ATTEMPTS):
            self._channel.disconnect()  # stop() may have woken it the hard way just before
            try:
                self._channel.checked(self._channel.exchange(commands, 1.0))
                return
            except AgentlaceError as trouble:
                error = trouble
        if answer is not None:
            text = "%s could not send its last reply: %s"
            log.warning(text, self._keys.name, error, extra=self._about(error))

    def _answer(self, data: Any, place: int) -> Outgoing | None:
        """Execute one request; returns what answers it, if anything does."""
        request = self._read(data, place)
        return None if request is None else self._respond(request)

    def _read(self, data: Any, place: int) -> Request | None:
        """Return the request; None if it cannot be read."""
        try:
            return self._reader.read(data, place)
        except AgentlaceError as error:
            self._note_unreadable(data, error)
            self._drop(place)
            return None

    def _respond(self, request: Request) -> Outgoing | None:
        call, number, deadline_ms, caller, payload, place = request
        reply = self._remembered.find(caller, number) if call.what in AT_MOST_ONCE else None
        if reply is None:
            if self._is_expired(request):
                self._drop(place)
                return None
            self.caller = caller
            reply = self._execute(call, number, payload)
            self.answered += 1
            late_ms = self._broker.now_ms() - deadline_ms
            if late_ms > 0:
                self._note_late("finished", call, late_ms)
            if call.what in AT_MOST_ONCE:
                self._remembered.add(caller, number, reply)
        return self._outgoing(request, reply)

    def _outgoing(self, request: Request, reply: Frame) -> Outgoing:
        key = request.caller, request.place, self._place
        return Outgoing(self._envelopes.get(key) or self._envelope(*key), reply, request.place)

    def _is_expired(self, request: Request) -> bool:
        """Whether a request is to be dropped; it is counted and logged then."""
        overdue_ms = self._broker.now_ms() - request.deadline_ms
        if overdue_ms <= 0:  # not if it is no number
            return False
        self.expired += 1
        self._note_late("dropped", request.call, overdue_ms)
        return True

    def _note_late(self, what: str, call: Call, late_ms: float) -> None:
        text, cause = f"%s was {what} %.0f ms after its deadline", (what, call.name)
        self._refrain.say(log.warning, cause, text, call, late_ms, extra=self._about())

    def _drop(self, place: int) -> None:
        """Have a request removed that needs no answer."""
        if place != NOWHERE:
            self._dropped.append(place)

    def _note_unreadable(self, data: Any, error: AgentlaceError) -> None:
        """Say who sent a request that cannot be read, as far as that can be told."""
        self.unreadable += 1
        if self._refrain.is_due(error):
            found = [value.hex() for value in stamp_in(data, REQUEST_STAMP) if type(value) is bytes]
            sender = self._keys.reply(found[0]) if found else "somebody"
            text = "%s dropped a request that it cannot read, of %s: %.1000s%s"
            args = (self._keys.name, sender, error, self._refrain.note())
            log.error(text, *args, extra=about(self._about(error), peer=sender))

    def _envelope(self, caller: bytes, place: int, following: int) -> Envelope:
        """Return what encloses a reply to a caller.

        It is its push, its expiry, the removal of the request from its place, and the next pop.
        """
        reply, intake = self._keys.reply(caller.hex()), self._intake
        between: list[Command] = [("PEXPIRE", reply, REPLY_MS), *intake.drop([place])]
        pop = intake.pop(following, self._channel.slice_s)
        envelope = Envelope(("RPUSH", reply), between, pop)
        return keep(self._envelopes, (caller, place, following), envelope, CALLERS)

    def _execute(self, call: Call, number: int, payload: Any) -> Frame:
        if call.repeats is not None and call.what in AT_MOST_ONCE and call.repeats != self._token:
            text = "it may have been executed by the server before this one; it was not repeated"
            return failure(number, "ServerRestarted", text)
        if call.run != self._run and call.run and self._run and call.what in AT_MOST_ONCE:
            text = "it may have been executed before the broker was restarted; it was not repeated"
            return failure(number, "BrokerRestarted", text)
        try:
            result = self._handler(call.what, call.name, payload)
            return call.replies.encode((number,), result)
        except (Exception, SystemExit) as error:
            # An exit in a thread of its own would only leave a server that looks alive.
            if isinstance(error, SystemExit) and self._thread is None:
                raise
            return self._failures.reply(call, number, error)

    def _about(self, error: BaseException | None = None) -> dict[str, Any]:
        return about(self._keys.labels, error=error)

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Stop serving; a handler that is running may finish first, within ``timeout_s``."""
        self._stop.set()
        if self._runner is None or self._runner is threading.current_thread():
            self._channel.unblock()
            return
        deadline = time.monotonic() + timeout_s
        while not self._done.is_set() and time.monotonic() < deadline:
            if not self._is_ending:
                self._channel.unblock()  # again and again: it may come before the thread blocks
            self._done.wait(0.05)
        self._channel.close()
        if self._thread is not None and self._done.is_set():
            self._thread.join(JOIN_TIMEOUT_S)
