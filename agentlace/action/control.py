"""Exclusive control: one client alone may drive a robot, until it releases it or is gone.

The server grants it, keeps it in memory and says so in its presence, so that everybody sees who
drives, and a server that is started anew knows it. The holder's own presence key is the lease:
when it has expired, control is free. An action costs nothing for all this but a comparison.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from agentlace.errors import ControlHeld, UnknownRequest
from agentlace.transport import presence
from agentlace.transport.backoff import Refrain
from agentlace.transport.connection import Channel
from agentlace.transport.identity import is_dead
from agentlace.transport.keys import ServiceKeys

log = logging.getLogger("agentlace.action")

CONTROL = "control"
"""The kind of request, and the field of a server's presence."""
TAKE, RELEASE = "take", "release"
GRANTED = {"granted": True}
ABSENCES = 3
"""A holder whose presence is missing at so many beats is gone.

Not at one: a broker that came back empty knows it again only after its next beat, and the beats
of two nodes come in any order.
"""
TEXT_CHARS = 256


class Holder(NamedTuple):
    """The client that has control.

    Attributes:
        caller: what its requests say of who sends them, as hexadecimal digits.
        name: of its presence key.
        host: where it runs.
        pid: its process.
    """

    caller: str
    name: str
    host: str
    pid: int

    @classmethod
    def told(cls, fields: Any) -> Holder | None:
        """Return the holder that a presence or request tells; None if it tells none."""
        if not isinstance(fields, dict):
            return None
        pid, told = fields.get("pid"), [fields.get(name) for name in ("caller", "name", "host")]
        texts = [text for text in told if isinstance(text, str) and len(text) <= TEXT_CHARS]
        if len(texts) != len(told) or type(pid) is not int:
            return None
        caller, name, host = texts
        return cls(caller, name, host, pid)

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.host} pid {self.pid}"


class Lease:
    """Who has control of one server; kept by that server.

    Threads: requests take and release it, the heartbeat looks whether the holder is still there.

    Args:
        keys: of the service.
        changed: called after each change, in the thread that made it.

    Attributes:
        holder: who has control, None if nobody has.
        refused: actions that were refused.
    """

    def __init__(self, keys: ServiceKeys, changed: Callable[[], None]) -> None:
        self._keys = keys
        self._changed = changed
        self._lock = threading.Lock()
        self._absences = 0
        self._refrain = Refrain()
        self.holder: Holder | None = None
        self.refused = 0
        self._holder_caller: bytes | None = None

    def handle(self, what: str, caller: bytes, payload: Any) -> dict[str, Any]:
        """Answer a request; raises ControlHeld or UnknownRequest."""
        if what == TAKE:
            return self._take(caller, payload)
        if what == RELEASE:
            with self._lock:
                holder, is_theirs = self.holder, caller == self._holder_caller
            if is_theirs:
                self._end(holder, "released it")
            return {"released": is_theirs}
        raise UnknownRequest(f"unknown request for control {what!r}")

    def _take(self, caller: bytes, payload: Any) -> dict[str, Any]:
        wanted = Holder.told({**payload, "caller": caller.hex()} if type(payload) is dict else None)
        if wanted is None:
            raise UnknownRequest("a request for control must tell name, host and pid")
        with self._lock:
            if self.holder is not None and caller != self._holder_caller:
                raise self._held(self.holder, "control was not given to another")
            is_new = self.holder is None
            self._hold(wanted)
        if is_new:
            log.info("%s: %s has control", self._keys.name, wanted)
            self._changed()
        return GRANTED

    def _hold(self, holder: Holder | None) -> None:
        self._absences = 0
        self._holder_caller = None if holder is None else bytes.fromhex(holder.caller)
        self.holder = holder

    def _held(self, holder: Holder, fate: str) -> ControlHeld:
        return ControlHeld(
            f"{self._keys.name} is under control of {holder}: {fate}; "
            "wait until that client releases it or stops"
        )

    def check(self, caller: bytes, action: str) -> None:
        """Raise ControlHeld if somebody else has control."""
        allowed, holder = self._holder_caller, self.holder
        if allowed is None or caller == allowed or holder is None:
            return
        self.refused += 1
        error = self._held(holder, f"act {action!r} was not executed")
        if self._refrain.is_due(error):
            log.warning("another client acts: %s%s", error, self._refrain.note())
        raise error

    def look(self, channel: Channel) -> None:
        """Free control if its holder is gone; at each heartbeat."""
        holder = self.holder
        if holder is None:
            return
        peer = presence.read_peer(channel, self._keys.client(holder.name))
        if peer is not None and not is_dead(peer):
            self._absences = 0
            return
        self._absences += 1
        if peer is not None or self._absences >= ABSENCES:
            self._end(holder, "is gone")

    def _end(self, holder: Holder | None, why: str) -> None:
        with self._lock:
            if holder is None or self.holder != holder:
                return
            self._hold(None)
        log.warning("%s: %s %s, control is free", self._keys.name, holder, why)
        self._changed()

    def restore(self, channel: Channel) -> None:
        """Go on with what the server before this one has granted, if its holder is still there."""
        seen = presence.read_peer(channel, self._keys.seen) or {}
        holder = Holder.told(seen.get(CONTROL))
        if holder is not None and not _is_caller(holder.caller):
            holder = None
        if holder and presence.read_peer(channel, self._keys.client(holder.name)) is None:
            holder = None
        with self._lock:
            self._hold(holder)


def _is_caller(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) > 0
    except ValueError:
        return False
