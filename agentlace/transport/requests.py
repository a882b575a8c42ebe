"""Requests and replies: one list per service, one list per caller.

The caller writes ``RPUSH requests`` and ``BLPOP own-reply`` in one go; the server answers and
waits for the next request in one go. Deadlines are in the broker's time, so that the clocks
of the two machines do not matter: each knows its own offset to the broker.

A request of at-most-once kind carries the identity of the server that it was first meant for.
That server remembers its last reply per caller and answers a repetition from it; any other
server refuses one, because it cannot know what was executed. It also carries the run of the
broker that it was given to: one that came back older than it was may still hold requests that
had been taken and executed, and those are refused for the same reason.

A call in a control loop is the same again and again but for its number, its deadline and what
its arrays and numbers hold. So frames are stamped (:mod:`agentlace.codec.stamped`), the commands
around them are packed once, and an answer that looks as expected is taken without parsing it.
Whatever else comes is parsed reply by reply.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agentlace.codec import Frame, StampedDecoder, StampedEncoder
from agentlace.codec.unstamped import Stamped, stamp_in
from agentlace.errors import (
    AgentlaceError,
    BrokerUnreachable,
    RequestTimeout,
)
from agentlace.transport import facts
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import MARGIN_S, Broker
from agentlace.transport.envelope import Envelope
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.link import LEAST_S, STEP_S, in_steps
from agentlace.transport.replies import REPLY, REPLY_STAMP
from agentlace.transport.request_frames import (
    FAMILY_BYTES,
    REQUEST,
    REQUEST_STAMP,
    checked,
    keep,
    raise_failure,
)
from agentlace.transport.request_server import Handler, RequestServer
from agentlace.transport.ticket import Ticket
from agentlace.waits import Trying

__all__ = ["Handler", "RequestClient", "RequestServer", "Ticket"]

LEAST_BLOCK_S = 0.002
"""Redis 6.2 takes a millisecond for none at all, which means without end."""
NO_SERVER = ""
"""What a repetition says if no server was known when its request was first sent."""


ENCODERS = 64
"""So many kinds of request are remembered by their structure."""
TURNS = 64
LONG_S = 4.0
"""From this patience on, more of it makes no difference to a single wait."""


class _Turn(NamedTuple):
    """How a request is sent: what encloses it, and how long the broker may be silent."""

    envelope: Envelope
    timeout_s: float


class RequestClient:
    """Calls one service. Thread-safe: calls are made one after the other.

    Args:
        broker: where.
        keys: whom.
        server: returns the token of the server that is there now, None if none is known.
        family: of another line of the same client: servers take both for one client's.

    Attributes:
        caller: what every request says of who sends it.
        made: calls so far.
        failed: those of them that got no answer, or an error.
        unanswered: what it waits for, if that takes long.
    """

    def __init__(
        self,
        broker: Broker,
        keys: ServiceKeys,
        server: Callable[[], str | None] = lambda: None,
        family: bytes = b"",
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._server = server
        self.caller = family[:FAMILY_BYTES] + uuid.uuid4().bytes[len(family[:FAMILY_BYTES]) :]
        self._reply_key = keys.reply(self.caller.hex())
        self._channel = broker.channel(key=keys.prefix)
        self._channel.spins = True
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._numbers = itertools.count(secrets.randbits(62))
        self._encoders: dict[tuple[str, str, str | None], StampedEncoder] = {}
        self._decoder = StampedDecoder(REPLY, REPLY_STAMP, checked)
        self._turns: dict[int, _Turn] = {}
        self._run = ""
        self._connects = 0
        self.unanswered = Trying()
        self.made = 0
        self.failed = 0

    @property
    def family(self) -> bytes:
        """Return what all lines of one client have in common."""
        return self.caller[:FAMILY_BYTES]

    def ticket(self) -> Ticket:
        """Return a new request's identity."""
        return Ticket(next(self._numbers), self._server())

    def call(
        self, what: str, name: str, payload: Any, timeout_s: float, ticket: Ticket | None = None
    ) -> Any:
        """Send a request and return the reply's tree.

        Blocks for at most ``timeout_s``, which includes waiting for an earlier call of another
        thread; connecting has its own deadline. If the connection is lost meanwhile, the request
        is sent again under the same identity.

        Args:
            what: kind of request.
            name: key, type or interface.
            payload: any tree that the codec takes.
            timeout_s: deadline in seconds from now.
            ticket: of a request that this call may repeat.

        Raises:
            RequestTimeout: no reply in time; it says whether a server had taken the request.
            RemoteError: the handler raised.
            UnknownRequest: the server offers nothing of this name.
            Busy, Superseded: the server refused it unexecuted; the class says why.
            EncodeError: the payload may not travel.
            BrokerUnreachable, BrokerAuthFailed, StoreFull: the broker is away or refuses.
            Closed: after :meth:`close`, or while it is called.
        """
        return self.ask(what, name, payload, timeout_s, ticket)[1]

    def ask(
        self, what: str, name: str, payload: Any, timeout_s: float, ticket: Ticket | None = None
    ) -> tuple[Mapping[str, Any], Any]:
        """Do as :meth:`call` does; returns what the reply says beside its tree, and the tree."""
        end = time.monotonic() + timeout_s
        ticket = ticket or self.ticket()
        lock = self._lock
        if not lock.acquire(False) and not lock.acquire(timeout=max(timeout_s, 0.0)):
            raise RequestTimeout(f"{what} {name!r}", timeout_s, None if ticket.sent else False)
        self.made += 1
        is_answered = False
        try:
            reply, started = self._persist(what, name, payload, ticket, end)
            if reply is None:
                self.unanswered.failed(self._awaited(what, name))
            else:
                self.unanswered.succeeded()
            is_answered = reply is not None and reply[0]["status"] == "ok"
        finally:
            self.failed += not is_answered
            lock.release()
        if reply is None:
            raise RequestTimeout(f"{what} {name!r}", timeout_s, started)
        meta, _, tree = reply
        return (meta, tree) if meta["status"] == "ok" else raise_failure(meta)

    def _persist(
        self, what: str, name: str, payload: Any, ticket: Ticket, end: float
    ) -> tuple[Stamped | None, bool | None]:
        """Return the reply, over as many connections as it takes; or None, and what is known."""
        backoff = None
        while True:
            earlier = ticket.sent
            if not self._channel.is_connected:
                self._channel.be_back_within(end - time.monotonic())
            try:
                self._meet_broker()
                frame = self._encode(what, name, payload, ticket, end)
                if not self._channel.is_connected and self._broker.follow_clock(self._channel):
                    frame = self._encode(what, name, payload, ticket, end)
                reply = self._ask(frame, ticket, end, what, name)
            except BrokerUnreachable:
                backoff = backoff or Backoff()
                pause = backoff.next_s()
                if time.monotonic() + pause >= end:
                    raise
                self._closed.wait(pause)
                continue
            return reply, None if reply else self._withdraw(frame, ticket, earlier)

    def _meet_broker(self) -> None:
        """Find out which run of the broker it is, whenever it is connected anew."""
        channel = self._channel
        if not channel.is_connected:
            channel.connect()
        if channel.connects != self._connects:
            run, self._connects = facts.run_of(channel), channel.connects
            if run != self._run:
                self._run = run
                self._encoders.clear()

    def _encode(self, what: str, name: str, payload: Any, ticket: Ticket, end: float) -> Frame:
        repeats = (ticket.server or NO_SERVER) if ticket.sent else None
        encoder = self._encoders.get((what, name, repeats))
        if encoder is None:
            meta = {"what": what, "name": name, "run": self._run, "repeats": repeats}
            encoder = StampedEncoder(REQUEST, meta, REQUEST_STAMP)
            keep(self._encoders, (what, name, repeats), encoder, ENCODERS)
        return encoder.encode((ticket.id, self._broker.at_ms(end), self.caller), payload)

    def _awaited(self, what: str, name: str) -> str:
        return f"reply of {self._keys.name} to {what} {name!r}"

    def _ask(
        self, frame: Frame, ticket: Ticket, end: float, what: str, name: str
    ) -> Stamped | None:
        """Push the request once, then wait for its reply; None when the time is over."""
        channel = self._channel
        if not channel.is_connected:
            channel.connect()
        ticket.sent = True
        left_s = end - time.monotonic()
        turn = self._turns.get(int(1000 * min(left_s, LONG_S)) + 1) or self._turn(left_s)
        try:
            data = channel.trade(turn.envelope, frame, turn.timeout_s)
            if data is None:
                data = self._first_popped(turn.timeout_s)
        except AgentlaceError:
            channel.disconnect()  # nobody waits any more for what was sent behind a refusal
            raise
        while True:
            reply = None if data is None else self._decoded(data, ticket)
            if reply is not None and reply[1][0] == ticket.id:  # else it answers one that timed out
                return reply
            left_s = end - time.monotonic()
            if left_s <= 0:
                return None
            self.unanswered.failed(self._awaited(what, name))
            data = self._pop(left_s)

    def _decoded(self, data: Any, ticket: Ticket) -> Stamped | None:
        """Return a reply; None if it cannot be read and is not what is waited for."""
        try:
            return self._decoder.decode(data)
        except AgentlaceError:
            if stamp_in(data, REPLY_STAMP) == (ticket.id,):
                raise
            return None  # no server has sent it

    def _first_popped(self, timeout_s: float) -> Any:
        """Receive one by one what answers a push and a pop; returns a reply's bytes, if it came."""
        channel = self._channel
        channel.checked([channel.receive(timeout_s)])
        return _second(channel.checked([channel.receive(timeout_s)])[0])

    def _turn(self, left_s: float) -> _Turn:
        left_ms = int(1000 * min(max(left_s, 0.0), LONG_S)) + 1
        turn = self._turns.get(left_ms)
        if turn is None:
            slice_s = min(max(left_ms / 1000, LEAST_BLOCK_S), self._channel.slice_s)
            pop = ("BLPOP", self._reply_key, f"{slice_s:g}")
            envelope = Envelope(("RPUSH", self._keys.requests), (), pop)
            turn = _Turn(envelope, _patience(slice_s, left_ms / 1000))
            keep(self._turns, left_ms, turn, TURNS)
        return turn

    def _pop(self, left_s: float) -> Any:
        """Wait for another reply's bytes; None after a slice."""
        slice_s = min(max(left_s, LEAST_BLOCK_S), self._channel.slice_s)
        pop = ("BLPOP", self._reply_key, f"{slice_s:.3f}")
        try:
            return _second(self._channel.call(*pop, timeout_s=_patience(slice_s, left_s)))
        except AgentlaceError:
            self._channel.disconnect()
            raise

    def _withdraw(self, frame: Frame, ticket: Ticket, earlier: bool) -> bool | None:
        """Take an unanswered request back; False if no server had taken it, None if unknown.

        If it may have been sent ``earlier`` as well, there may be another copy of it.
        """
        try:
            removed = self._channel.call("LREM", self._keys.requests, -1, frame, timeout_s=1.0)
        except AgentlaceError:
            return None
        if not removed:
            return True
        ticket.sent = earlier
        return None if earlier else False

    def reset(self) -> None:
        """Drop the connection; the next call connects anew."""
        with self._lock:
            self._channel.disconnect()

    def close(self) -> None:
        """Close; a call that is waiting fails with Closed."""
        self._closed.set()
        self._channel.close()


def _patience(slice_s: float, left_s: float) -> float:
    """Return how long the broker may be silent: not much longer than the caller will wait."""
    return min(in_steps(slice_s) + MARGIN_S, in_steps(max(left_s, LEAST_S)) + STEP_S)


def _second(popped: Any) -> Any:
    return None if popped is None else popped[1]
