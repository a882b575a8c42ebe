"""The answering end of requests; :mod:`agentlace.transport.requests` says how they travel."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from agentlace import codec
from agentlace.errors import AgentlaceError, Closed, DecodeError, EncodeError, UnknownRequest
from agentlace.transport.backoff import Backoff
from agentlace.transport.connection import MARGIN_S, Broker
from agentlace.transport.keys import REPLY_MS, ServiceKeys
from agentlace.transport.resp import Command, ErrorReply

log = logging.getLogger(__name__)

REQUEST, REPLY = "request", "reply"
AT_MOST_ONCE = frozenset({"act", "request"})
"""Kinds of request that are never executed twice; all others are pure and may be."""
REMEMBERED_CALLERS = 256
"""Of so many callers the last replies are remembered."""
REMEMBERED_REPLIES = 4
"""So many of each: a caller may repeat one request while others of its threads go on."""
JOIN_TIMEOUT_S = 5.0

Handler = Callable[[str, str, Any], Any]
"""Called with what (``act``), its name (the key) and its payload; returns the reply's tree."""


class _Request(NamedTuple):
    """A request as it arrived."""

    what: str
    name: str
    id: str
    reply_key: str
    deadline_ms: float
    repeats: str | None
    payload: Any

    @classmethod
    def decode(cls, data: Any, keys: ServiceKeys) -> _Request:
        """Decode and check a request; raises DecodeError or MissingExtra."""
        _, meta, payload = codec.decode(data, REQUEST)
        try:
            what, name, request_id, reply_key = (meta[k] for k in ("what", "name", "id", "reply"))
            deadline_ms, repeats = float(meta["deadline"]), meta["repeats"]
        except (KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"a request without {error}") from error
        texts = (what, name, request_id, reply_key, repeats or "")
        if any(type(text) is not str for text in texts):
            raise DecodeError("a request whose names are not strings")
        if not reply_key.startswith(keys.reply("")):
            raise DecodeError(f"a request to be answered at {reply_key!r}")
        return cls(what, name, request_id, reply_key, deadline_ms, repeats, payload)

    def __str__(self) -> str:
        """Return how it is called in messages."""
        return f"{self.what} {self.name!r}"


class RequestServer:
    """Answers a service's requests, one after the other, in one thread.

    Args:
        broker: where.
        keys: which service.
        handler: what to do; an exception is answered to the caller and logged here.
        token: this server's identity.
    """

    def __init__(self, broker: Broker, keys: ServiceKeys, handler: Handler, token: str) -> None:
        self._broker = broker
        self._keys = keys
        self._handler = handler
        self._token = token
        self._channel = broker.channel()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._remembered: OrderedDict[str, OrderedDict[str, codec.Frame]] = OrderedDict()
        self.answered = 0
        self.expired = 0

    def start(self) -> None:
        """Serve in a thread of its own."""
        name = f"serve {self._keys.name}"
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Serve in this thread until :meth:`stop` is called from another one or a handler."""
        try:
            self._serve()
        finally:
            self._channel.close()

    def _serve(self) -> None:
        backoff = Backoff()
        answer: list[Command] = []
        while not self._stop.is_set():
            try:
                request = self._next(answer)
            except Closed:
                return
            except AgentlaceError as error:
                if backoff.is_news(error) and not self._stop.is_set():
                    log.warning("%s waits for the broker: %s", self._keys.name, error)
                self._stop.wait(backoff.next_s())
                continue
            backoff.reset()
            answer = [] if request is None else self._answer(request)
        self._send_last(answer)

    def _next(self, answer: list[Command]) -> Any:
        """Send the last answer and wait for a request, in one write; None after a slice.

        A refused answer is only logged: a request may have been popped right behind it.
        """
        channel = self._channel
        slice_s = channel.slice_s
        commands = [*answer, ("BLPOP", self._keys.requests, f"{slice_s:g}")]
        *answered, popped = channel.exchange(commands, slice_s + MARGIN_S)
        for reply in answered:
            if isinstance(reply, ErrorReply):
                log.error("%s could not send a reply: %s", self._keys.name, reply)
        channel.checked([popped])
        return None if popped is None else popped[1]

    def _send_last(self, answer: list[Command]) -> None:
        if answer:
            self._channel.disconnect()  # stop() may have woken this thread the hard way
            try:
                self._channel.checked(self._channel.exchange(answer, 1.0))
            except AgentlaceError as error:
                log.warning("%s could not send its last reply: %s", self._keys.name, error)

    def _answer(self, data: Any) -> list[Command]:
        """Execute one request; returns the commands that answer it."""
        try:
            request = _Request.decode(data, self._keys)
        except AgentlaceError as error:
            log.error("%s dropped a request that it cannot read: %s", self._keys.name, error)
            return []
        replies = self._remembered.get(request.reply_key)
        if replies and request.id in replies:
            return self._commands(request, replies[request.id])
        overdue_ms = self._broker.now_ms() - request.deadline_ms
        if overdue_ms > 0:
            self.expired += 1
            log.warning("%s was dropped %.0f ms after its deadline", request, overdue_ms)
            return []
        reply = self._execute(request)
        self.answered += 1
        late_ms = self._broker.now_ms() - request.deadline_ms
        if late_ms > 0:
            log.warning("%s was finished %.0f ms after its deadline", request, late_ms)
        if request.what in AT_MOST_ONCE:
            self._remember(request, reply)
        return self._commands(request, reply)

    def _commands(self, request: _Request, reply: codec.Frame) -> list[Command]:
        key = request.reply_key
        return [("RPUSH", key, reply), ("PEXPIRE", key, REPLY_MS)]

    def _execute(self, request: _Request) -> codec.Frame:
        if request.what in AT_MOST_ONCE and request.repeats not in (None, self._token):
            text = "it may have been executed by the server before this one; it was not repeated"
            return _failure(request, "ServerRestarted", text)
        try:
            result = self._handler(request.what, request.name, request.payload)
            return codec.encode(result, REPLY, {"id": request.id, "status": "ok"})
        except UnknownRequest as error:
            return _failure(request, "UnknownRequest", str(error), "unknown")
        except EncodeError as error:
            log.error("the reply to %s may not travel: %s", request, error)
            return _failure(request, "EncodeError", f"its reply may not travel: {error}")
        except (Exception, SystemExit) as error:
            # An exit in a thread of its own would only leave a server that looks alive.
            if isinstance(error, SystemExit) and self._thread is None:
                raise
            log.error("the handler of %s raised:\n%s", request, traceback.format_exc())
            return _failure(request, type(error).__name__, str(error))

    def _remember(self, request: _Request, reply: codec.Frame) -> None:
        # The handler may change its arrays afterwards, so the reply is kept in bytes of its own.
        kept = codec.Frame([bytes(reply)], reply.nbytes)
        replies = self._remembered.setdefault(request.reply_key, OrderedDict())
        replies[request.id] = kept
        self._remembered.move_to_end(request.reply_key)
        if len(replies) > REMEMBERED_REPLIES:
            replies.popitem(last=False)
        if len(self._remembered) > REMEMBERED_CALLERS:
            self._remembered.popitem(last=False)

    def stop(self) -> None:
        """Stop serving; a handler that is running may finish first (JOIN_TIMEOUT_S)."""
        self._stop.set()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            self._channel.unblock()
            return
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while thread.is_alive() and time.monotonic() < deadline:
            self._channel.unblock()  # again and again: it may come before the thread blocks
            thread.join(0.05)
        self._channel.close()


def _failure(request: _Request, kind: str, message: str, status: str = "error") -> codec.Frame:
    text = message[:4000].encode(errors="replace").decode()
    meta = {"id": request.id, "status": status, "type": kind, "message": text}
    return codec.encode(None, REPLY, meta)
