"""Requests and replies: one list per service, one list per caller.

The caller writes ``RPUSH requests`` and ``BLPOP own-reply`` in one go; the server answers and
waits for the next request in one go. Deadlines are in the broker's time, so that the clocks
of the two machines do not matter: each knows its own offset to the broker.

A request of at-most-once kind carries the identity of the server that it was first meant for.
That server remembers its last reply per caller and answers a repetition from it; any other
server refuses one, because it cannot know what was executed.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentlace import codec
from agentlace.errors import (
    AgentlaceError,
    BrokerUnreachable,
    RemoteError,
    RequestTimeout,
    UnknownRequest,
)
from agentlace.transport.backoff import Backoff
from agentlace.transport.channel import LEAST_S
from agentlace.transport.connection import MARGIN_S, Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.link import STEP_S, in_steps
from agentlace.transport.request_server import REPLY, REQUEST, Handler, RequestServer
from agentlace.transport.resp import Command, Reply

__all__ = ["Handler", "RequestClient", "RequestServer", "Ticket"]

NO_SERVER = ""
"""What a repetition says if no server was known when its request was first sent."""


@dataclass
class Ticket:
    """The identity of one request, kept by a caller that may repeat it.

    Attributes:
        server: the server that it was first meant for.
        sent: whether it may have reached a server, or may still do so.
    """

    id: str
    server: str | None
    sent: bool = False


class RequestClient:
    """Calls one service. Thread-safe: calls are made one after the other.

    Args:
        broker: where.
        keys: whom.
        server: returns the token of the server that is there now, None if none is known.
    """

    def __init__(
        self, broker: Broker, keys: ServiceKeys, server: Callable[[], str | None] = lambda: None
    ) -> None:
        self._broker = broker
        self._keys = keys
        self._server = server
        self._reply_key = keys.reply(uuid.uuid4().hex)
        self._channel = broker.channel()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._id = uuid.uuid4().hex
        self._numbers = itertools.count()

    def ticket(self) -> Ticket:
        """Return a new request's identity."""
        return Ticket(f"{self._id}-{next(self._numbers)}", self._server())

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
            EncodeError: the payload may not travel.
            BrokerUnreachable, BrokerAuthFailed, StoreFull: the broker is away or refuses.
            Closed: after :meth:`close`, or while it is called.
        """
        end = time.monotonic() + timeout_s
        ticket = ticket or self.ticket()
        if not self._lock.acquire(timeout=max(timeout_s, 0.0)):
            raise RequestTimeout(f"{what} {name!r}", timeout_s, None if ticket.sent else False)
        try:
            reply, started = self._persist(what, name, payload, ticket, end)
        finally:
            self._lock.release()
        if reply is None:
            raise RequestTimeout(f"{what} {name!r}", timeout_s, started)
        return _opened(reply)

    def _persist(
        self, what: str, name: str, payload: Any, ticket: Ticket, end: float
    ) -> tuple[codec.Message | None, bool | None]:
        """Return the reply, over as many connections as it takes; or None, and what is known."""
        backoff = Backoff()
        while True:
            earlier = ticket.sent
            self._channel.be_back_within(end - time.monotonic())
            try:
                frame = self._encode(what, name, payload, ticket, end)
                reply = self._ask(frame, ticket, end)
            except BrokerUnreachable:
                pause = backoff.next_s()
                if time.monotonic() + pause >= end:
                    raise
                self._closed.wait(pause)
                continue
            return reply, None if reply else self._withdraw(frame, ticket, earlier)

    def _encode(
        self, what: str, name: str, payload: Any, ticket: Ticket, end: float
    ) -> codec.Frame:
        left_ms = 1000 * (end - time.monotonic())
        meta = {
            "id": ticket.id,
            "what": what,
            "name": name,
            "reply": self._reply_key,
            "deadline": self._broker.now_ms() + left_ms,
            "repeats": (ticket.server or NO_SERVER) if ticket.sent else None,
        }
        return codec.encode(payload, REQUEST, meta)

    def _ask(self, frame: codec.Frame, ticket: Ticket, end: float) -> codec.Message | None:
        """Push the request once, then wait for its reply; None when the time is over."""
        push: list[Command] = [("RPUSH", self._keys.requests, frame)]
        self._channel.connect()
        ticket.sent = True
        while True:
            left = end - time.monotonic()
            if left <= 0 and not push:
                return None
            popped = self._pop(push, left)
            push = []
            if popped is not None:
                message = codec.decode(popped[1], REPLY)
                if message.meta["id"] == ticket.id:  # else it answers one that has timed out
                    return message

    def _pop(self, push: list[Command], left_s: float) -> Reply:
        """Send a command, if there is one, and wait for a reply; None after a slice."""
        channel = self._channel
        slice_s = min(max(left_s, 0.001), channel.slice_s)
        timeout_s = _patience(slice_s, left_s)
        pop = ("BLPOP", self._reply_key, f"{slice_s:.3f}")
        try:
            channel.send([*push, pop], timeout_s)
            for _ in push:
                channel.checked([channel.receive(timeout_s)])
            return channel.checked([channel.receive(timeout_s)])[0]
        except AgentlaceError:
            channel.disconnect()  # nobody waits any more for what was sent behind a refusal
            raise

    def _withdraw(self, frame: codec.Frame, ticket: Ticket, earlier: bool) -> bool | None:
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


def _opened(message: codec.Message) -> Any:
    meta = message.meta
    if meta["status"] == "ok":
        return message.tree
    if meta["status"] == "unknown":
        raise UnknownRequest(meta["message"])
    raise RemoteError(meta["type"], meta["message"])
