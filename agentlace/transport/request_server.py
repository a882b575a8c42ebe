"""The answering end of requests; :mod:`agentlace.transport.requests` says how they travel."""

from __future__ import annotations

import logging
import struct
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from agentlace.codec import Frame, StampedDecoder, encode_stamped
from agentlace.codec.unstamped import stamp_in
from agentlace.errors import AgentlaceError, Closed, DecodeError, EncodeError, UnknownRequest
from agentlace.transport import facts
from agentlace.transport.backoff import Backoff, Refrain
from agentlace.transport.connection import MARGIN_S, Broker
from agentlace.transport.envelope import Envelope
from agentlace.transport.keys import REPLY_MS, ServiceKeys
from agentlace.transport.replies import REPLY, REPLY_STAMP, ReplyEncoder
from agentlace.transport.resp import ErrorReply

log = logging.getLogger(__name__)

REQUEST = "request"
REQUEST_STAMP = "Qd16s"
"""A request's number, its deadline in the broker's milliseconds, and who calls."""
AT_MOST_ONCE = frozenset({"act", "request"})
"""Kinds of request that are never executed twice; all others are pure and may be."""
REMEMBERED_CALLERS = 256
"""Of so many callers the last replies are remembered."""
REMEMBERED_BYTES = 64 << 20
"""Their replies together; the oldest go first."""
NAME_CHARS = 1024
"""No name in a request is longer."""
REMEMBERED_REPLIES = 4
"""So many of each: a caller may repeat one request while others of its threads go on."""
CALLERS = 1024
"""To so many callers the commands around a reply are kept packed."""
LAST_ATTEMPTS = 2
JOIN_TIMEOUT_S = 5.0

Handler = Callable[[str, str, Any], Any]
"""Called with what (``act``), its name (the key) and its payload; returns the reply's tree, or an
Answer."""


K = TypeVar("K")
V = TypeVar("V")


def keep(cache: dict[K, V], key: K, value: V, limit: int) -> V:
    """Put a value into a cache, which starts anew where it would hold more than its limit."""
    if len(cache) >= limit:
        cache.clear()
    cache[key] = value
    return value


class _Call(NamedTuple):
    """What requests of one structure have in common, and what encodes the replies to them."""

    what: str
    name: str
    run: str
    repeats: str | None
    replies: ReplyEncoder

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> _Call:
        """Return what a frame's meta says; raises DecodeError."""
        try:
            what, name, run, repeats = (meta[key] for key in ("what", "name", "run", "repeats"))
        except KeyError as error:
            raise DecodeError(f"a request without {error}") from error
        texts = (what, name, run, repeats or "")
        if any(type(text) is not str or len(text) > NAME_CHARS for text in texts):
            raise DecodeError(f"a request whose names are no strings of at most {NAME_CHARS}")
        return cls(what, name, run, repeats, ReplyEncoder())

    def __str__(self) -> str:
        """Return how it is called in messages."""
        return f"{self.what} {self.name!r}"


_Answer = tuple[Envelope, Frame]


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
        self._channel = broker.channel(key=keys.prefix)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_ending = False
        self._remembered: OrderedDict[bytes, OrderedDict[int, Frame]] = OrderedDict()
        self._remembered_bytes = 0
        self._refrain = Refrain()
        self._decoder = StampedDecoder(REQUEST, REQUEST_STAMP, _Call.of)
        self._envelopes: dict[bytes, Envelope] = {}
        self._run = ""
        self._connects = 0
        self.answered = 0
        self.expired = 0
        self.unreadable = 0

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
        answer: _Answer | None = None
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
            answer = None if request is None else self._answer(request)
        self._send_last(answer)

    def _next(self, answer: _Answer | None) -> Any:
        """Send the last answer and wait for a request, in one write; None after a slice.

        A refused answer is only logged: a request may have been popped right behind it.
        """
        channel = self._channel
        slice_s = channel.slice_s
        timeout_s = slice_s + MARGIN_S
        if not channel.is_connected or channel.connects != self._connects:
            channel.connect()
            self._run, self._connects = facts.run_of(channel), channel.connects
        if answer is None:
            self._broker.follow_clock(channel)
            popped = channel.call("BLPOP", self._keys.requests, f"{slice_s:g}", timeout_s=timeout_s)
            return None if popped is None else popped[1]
        data = channel.trade(*answer, timeout_s)
        if data is not None:
            return data
        for _ in range(answer[0].replies - 1):
            reply = channel.receive(timeout_s)
            if isinstance(reply, ErrorReply):
                log.error("%s could not send a reply: %s", self._keys.name, reply)
        popped = channel.checked([channel.receive(timeout_s)])[0]
        return None if popped is None else popped[1]

    def _send_last(self, answer: _Answer | None) -> None:
        if answer is None:
            return
        self._is_ending = True  # from here on stop() does not wake this thread any more
        envelope, reply = answer
        *commands, _ = envelope.commands(reply)
        error: AgentlaceError | None = None
        for _ in range(LAST_ATTEMPTS):
            self._channel.disconnect()  # stop() may have woken it the hard way just before
            try:
                self._channel.checked(self._channel.exchange(commands, 1.0))
                return
            except AgentlaceError as failure:
                error = failure
        log.warning("%s could not send its last reply: %s", self._keys.name, error)

    def _answer(self, data: Any) -> _Answer | None:
        """Execute one request; returns what answers it, if anything does."""
        try:
            call, (number, deadline_ms, caller, *_), payload = self._decoder.decode(data)
        except AgentlaceError as error:
            self._note_unreadable(data, error)
            return None
        replies = self._remembered.get(caller)
        if replies and number in replies:
            return self._envelope(caller), replies[number]
        overdue_ms = self._broker.now_ms() - deadline_ms
        if not overdue_ms <= 0:  # nor if it is no number
            self.expired += 1
            log.warning("%s was dropped %.0f ms after its deadline", call, overdue_ms)
            return None
        reply = self._execute(call, number, payload)
        self.answered += 1
        late_ms = self._broker.now_ms() - deadline_ms
        if late_ms > 0:
            log.warning("%s was finished %.0f ms after its deadline", call, late_ms)
        if call.what in AT_MOST_ONCE:
            self._remember(caller, number, reply)
        return self._envelopes.get(caller) or self._envelope(caller), reply

    def _note_unreadable(self, data: Any, error: AgentlaceError) -> None:
        """Say who sent a request that cannot be read, as far as that can be told."""
        self.unreadable += 1
        if self._refrain.is_due(error):
            found = [value.hex() for value in stamp_in(data, REQUEST_STAMP) if type(value) is bytes]
            sender = self._keys.reply(found[0]) if found else "somebody"
            text = "%s dropped a request that it cannot read, of %s: %.1000s%s"
            log.error(text, self._keys.name, sender, error, self._refrain.note())

    def _envelope(self, caller: bytes) -> Envelope:
        """Return what encloses a reply to a caller: its push, its expiry, and the next pop."""
        key = self._keys.reply(caller.hex())
        expire = ("PEXPIRE", key, REPLY_MS)
        envelope = Envelope(("RPUSH", key), (expire,), self._keys.requests, self._channel.slice_s)
        return keep(self._envelopes, caller, envelope, CALLERS)

    def _execute(self, call: _Call, number: int, payload: Any) -> Frame:
        if call.repeats is not None and call.what in AT_MOST_ONCE and call.repeats != self._token:
            text = "it may have been executed by the server before this one; it was not repeated"
            return _failure(number, "ServerRestarted", text)
        if call.run != self._run and call.run and self._run and call.what in AT_MOST_ONCE:
            text = "it may have been executed before the broker was restarted; it was not repeated"
            return _failure(number, "BrokerRestarted", text)
        try:
            result = self._handler(call.what, call.name, payload)
            return call.replies.encode((number,), result)
        except UnknownRequest as error:
            return _failure(number, "UnknownRequest", str(error), "unknown")
        except EncodeError as error:
            log.error("the reply to %s may not travel: %s", call, error)
            return _failure(number, "EncodeError", f"its reply may not travel: {error}")
        except (Exception, SystemExit) as error:
            # An exit in a thread of its own would only leave a server that looks alive.
            if isinstance(error, SystemExit) and self._thread is None:
                raise
            log.error("the handler of %s raised:\n%s", call, traceback.format_exc())
            return _failure(number, type(error).__name__, str(error))

    def _remember(self, caller: bytes, number: int, reply: Frame) -> None:
        # The handler may change its arrays afterwards, so the reply is kept in bytes of its own.
        is_own = len(reply.parts) == 1 and type(reply.parts[0]) is bytes
        replies = self._remembered.setdefault(caller, OrderedDict())
        replies[number] = reply if is_own else Frame([bytes(reply)], reply.nbytes)
        self._remembered_bytes += reply.nbytes
        self._remembered.move_to_end(caller)
        if len(replies) > REMEMBERED_REPLIES:
            self._remembered_bytes -= replies.popitem(last=False)[1].nbytes
        while len(self._remembered) > 1 and (
            len(self._remembered) > REMEMBERED_CALLERS or self._remembered_bytes > REMEMBERED_BYTES
        ):
            _, gone = self._remembered.popitem(last=False)
            self._remembered_bytes -= sum(frame.nbytes for frame in gone.values())

    def stop(self) -> None:
        """Stop serving; a handler that is running may finish first (JOIN_TIMEOUT_S)."""
        self._stop.set()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            self._channel.unblock()
            return
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while thread.is_alive() and time.monotonic() < deadline:
            if not self._is_ending:
                self._channel.unblock()  # again and again: it may come before the thread blocks
            thread.join(0.05)
        self._channel.close()


def _failure(number: int, kind: str, message: str, status: str = "error") -> Frame:
    text = message[:4000].encode(errors="replace").decode()
    meta = {"status": status, "type": kind, "message": text}
    return encode_stamped(REPLY, meta, struct.pack(f"<{REPLY_STAMP}", number), None)
