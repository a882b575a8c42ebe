"""What is in the frames of requests and replies."""

from __future__ import annotations

import logging
import struct
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

from agentlace.codec import Frame, StampedDecoder, encode_stamped
from agentlace.errors import (
    Busy,
    ControlHeld,
    DecodeError,
    EncodeError,
    NotReady,
    RemoteError,
    SchemaMismatch,
    Superseded,
    UnknownRequest,
)
from agentlace.logs import Refrain, about
from agentlace.transport.replies import REPLY, REPLY_STAMP, ReplyEncoder
from agentlace.transport.resp import Buffer

log = logging.getLogger(__name__)

REQUEST = "request"
REQUEST_STAMP = "Qd16s"
"""A request's number, its deadline in the broker's milliseconds, and who calls."""
FAMILY_BYTES = 8
"""So much at the beginning of who calls is the same for all lines of one client."""
NAME_CHARS = 1024
"""No name in a request is longer."""

_FAILURES = {"unknown": UnknownRequest, "busy": Busy, "superseded": Superseded}
"""What is raised for a reply of this status."""

K = TypeVar("K")
V = TypeVar("V")


def keep(cache: dict[K, V], key: K, value: V, limit: int) -> V:
    """Put a value into a cache, which starts anew where it would hold more than its limit."""
    if len(cache) >= limit:
        cache.clear()
    cache[key] = value
    return value


class Call(NamedTuple):
    """What requests of one structure have in common, and what encodes the replies to them."""

    what: str
    name: str
    run: str
    repeats: str | None
    replies: ReplyEncoder

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Call:
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


class Request(NamedTuple):
    """A request as it was read."""

    call: Call
    number: int
    deadline_ms: float
    caller: bytes
    payload: Any
    place: int

    @property
    def family(self) -> bytes:
        """Return what all lines of its client have in common."""
        return self.caller[:FAMILY_BYTES]


class RequestReader:
    """Reads requests that are often of one structure. Not thread-safe."""

    def __init__(self) -> None:
        self._decoder = StampedDecoder(REQUEST, REQUEST_STAMP, Call.of)

    def read(self, data: Buffer, place: int) -> Request:
        """Return a request; raises DecodeError."""
        call, values, payload = self._decoder.decode(data)
        return Request(call, values[0], values[1], values[2], payload, place)


def failure(number: int, kind: str, message: str, status: str = "error") -> Frame:
    """Return the reply that says why there is no other."""
    text = message[:4000].encode(errors="replace").decode()
    meta = {"status": status, "type": kind, "message": text}
    return encode_stamped(REPLY, meta, struct.pack(f"<{REPLY_STAMP}", number), None)


class Failures:
    """Tells callers of handlers' errors, and the log, where one that repeats is said rarely.

    Args:
        labels: of the messages in the log.
    """

    def __init__(self, labels: Mapping[str, Any]) -> None:
        self._labels = labels
        self._refrain = Refrain()

    def reply(self, call: Call, number: int, error: BaseException) -> Frame:
        """Return the reply that tells of an error."""
        if isinstance(error, UnknownRequest):
            return failure(number, "UnknownRequest", str(error), "unknown")
        if isinstance(error, ControlHeld):
            return failure(number, error.type, error.message)
        if isinstance(error, (NotReady, SchemaMismatch)):
            log.info("%s was refused: %s", call, error)  # not once per turn of a control loop
            return failure(number, type(error).__name__, str(error))
        if isinstance(error, EncodeError):
            self.tell(
                log.error, call.name, error, "the reply to %s may not travel: %s", call, error
            )
            return failure(number, "EncodeError", f"its reply may not travel: {error}")
        raised = "".join(traceback.format_exception(error))
        raised = raised.encode(errors="backslashreplace").decode()  # no log takes half a surrogate
        self.tell(log.error, call.name, error, "the handler of %s raised:\n%s", call, raised)
        return failure(number, type(error).__name__, str(error))

    def tell(
        self, write: Callable[..., None], name: str, error: BaseException, text: str, *args: Any
    ) -> None:
        """Log what came of calls of this name."""
        fields = about(self._labels, error=error)
        self._refrain.say(write, (name, type(error)), text, *args, extra=fields)


def checked(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a reply says beside its tree; raises DecodeError if it says nothing of use."""
    if type(meta.get("status")) is not str:
        raise DecodeError("a reply without a status")
    return meta


def raise_failure(meta: Mapping[str, Any]) -> NoReturn:
    """Raise what a reply tells of."""
    kind = _FAILURES.get(meta["status"])
    if kind is not None:
        raise kind(str(meta.get("message")))
    if meta.get("type") == ControlHeld.__name__:
        raise ControlHeld(str(meta.get("message")))
    raise RemoteError(str(meta.get("type")), str(meta.get("message")))
