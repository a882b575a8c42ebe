"""The servers of one service: each knows of the others, and takes over what a lost one had taken.

There is no coordinator. Each server is in a hash while it may have taken requests, and has a
presence key while it lives. Whoever finds one in the hash that has no presence looks into its
places: a request that may be executed again goes back to the head of the service's list, for
whichever server is next to take; any other is answered with ``ServerLost``. All of it may be
done by several at the same time: a request moves once, and a caller takes its first answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agentlace.errors import AgentlaceError, BrokerAuthFailed, DecodeError
from agentlace.logs import about
from agentlace.transport.channel import Channel
from agentlace.transport.identity import is_dead
from agentlace.transport.inflight import NOWHERE, Intake
from agentlace.transport.keys import AGAIN_MS, INFLIGHT_MS, REPLY_MS, ServiceKeys
from agentlace.transport.peer_info import read_peer
from agentlace.transport.request_frames import Request, RequestReader, failure
from agentlace.transport.resp import Command

log = logging.getLogger(__name__)

AGAIN_MAX = 2
"""A request is given to another server so often: it may be what its servers die of."""
PLACES_MAX = 1 << 16
"""No server is believed to have more places."""
AT_ONCE = 64
"""So many places are read at a time, since what is in them may be large."""


class Replicas:
    """The servers of a service, as one of them sees them. For one thread, with its channel.

    Args:
        keys: of the service.
        token: this server's.
        intake: this server's.
        may_repeat: tells for an interface's name whether a call of it may be executed again.

    Attributes:
        others: how many other servers there are, as of the last look.
        given: requests of lost servers that this one gave to others,
        answered: and those that it answered.
    """

    def __init__(
        self, keys: ServiceKeys, token: str, intake: Intake, may_repeat: Callable[[str], bool]
    ) -> None:
        self._keys = keys
        self._token = token
        self._intake = intake
        self._may_repeat = may_repeat
        self._reader = RequestReader()
        self._missing: set[str] = set()
        self.others = 0
        self.given = 0
        self.answered = 0

    def look(self, channel: Channel) -> None:
        """Say that this server is there, and take over what lost ones had taken.

        It is told of others that way; as soon as there are some, requests are to be moved.
        """
        if self._intake.is_refused and channel.can_move:
            return
        lists = [self._keys.inflight(self._token, place) for place in self._intake.held()]
        keep: list[Command] = [("PEXPIRE", key, INFLIGHT_MS) for key in lists]
        try:
            channel.checked(channel.exchange([self._intake.register(), *keep]))
        except BrokerAuthFailed as error:
            if not error.is_forbidden:
                raise
            return self._intake.note_refused(str(error))
        found = self._registered(channel)
        lost = {token for token in found if self._is_lost(channel, token)}
        for token in lost:
            self._take_over(channel, token, found[token])
        self._missing &= found.keys() - lost
        self.others = len(found) - len(lost)
        self._intake.wanted |= self.others > 0

    def leave(self, channel: Channel) -> bool:
        """Give back what is left in this server's places; returns whether it was the last one."""
        if self._intake.is_refused and channel.can_move:
            return True
        self._take_over(channel, self._token, self._intake.count if self._intake.moves else 0)
        return all(self._peer_is_gone(channel, token) for token in self._registered(channel))

    def _registered(self, channel: Channel) -> dict[str, int]:
        """Return the other servers that may have taken requests: how many places each has."""
        told = channel.call("HGETALL", self._keys.servers) or []
        texts = [bytes(value).decode(errors="replace") for value in told]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        found = {token: int(n) if n.isdecimal() else 0 for token, n in pairs}
        found.pop(self._token, None)
        return {token: min(places, PLACES_MAX) for token, places in found.items()}

    def _peer_is_gone(self, channel: Channel, token: str) -> bool:
        peer = self._peer(channel, token)
        return peer is None or is_dead(peer)

    def _peer(self, channel: Channel, token: str) -> dict[str, object] | None:
        try:
            return read_peer(channel, self._keys.replica(token))
        except DecodeError:
            return None

    def _is_lost(self, channel: Channel, token: str) -> bool:
        """Whether a server is certainly dead, or was missing the last time, too.

        One that is connected again after the broker was away may not have said so yet.
        """
        peer = self._peer(channel, token)
        if peer is not None:
            self._missing.discard(token)
            return is_dead(peer)
        was_missing = token in self._missing
        self._missing.add(token)
        return was_missing

    def _take_over(self, channel: Channel, token: str, places: int) -> None:
        given = answered = 0
        for first in range(0, places, AT_ONCE):
            lists = [self._keys.inflight(token, n) for n in range(first, first + AT_ONCE)]
            commands = [("LRANGE", key, 0, -1) for key in lists]
            held = channel.checked(channel.exchange(commands))
            for key, requests in zip(lists, held, strict=True):
                outcomes = [self._settle(channel, key, data) for data in requests]
                given += outcomes.count("given")
                answered += outcomes.count("answered")
        channel.call("HDEL", self._keys.servers, token)
        self.given += given
        self.answered += answered
        if given or answered:
            text = "%s: a server is gone; of its requests %d go to others, %d were answered"
            fields = about(self._keys.labels)
            log.warning(text, self._keys.name, given, answered, extra=fields)

    def _settle(self, channel: Channel, key: str, data: bytes) -> str:
        """Decide what becomes of a request that a lost server had taken, and see to it."""
        try:
            request = self._reader.read(data, NOWHERE)
        except AgentlaceError:
            channel.call("DEL", key)
            return ""
        if not channel.broker.now_ms() <= request.deadline_ms:
            channel.call("DEL", key)
            return ""
        if self._may_be_given(channel, request):
            moved = channel.call("LMOVE", key, self._keys.requests, "LEFT", "LEFT")
            if moved is None:
                return ""
            again = self._again(request)
            channel.checked(channel.exchange([("INCR", again), ("PEXPIRE", again, AGAIN_MS)]))
            return "given"
        channel.checked(channel.exchange(self._answer(key, request)))
        return "answered"

    def _again(self, request: Request) -> str:
        return self._keys.again(f"{request.caller.hex()}-{request.number}")

    def _may_be_given(self, channel: Channel, request: Request) -> bool:
        call = request.call
        if call.what == "call" and not self._may_repeat(call.name):
            return False
        times = channel.call("GET", self._again(request))
        return times is None or int(times) < AGAIN_MAX

    def _answer(self, key: str, request: Request) -> list[Command]:
        text = (
            "the server that had taken this call is gone; it was not given to another, since it "
            "may have been executed and its interface is not declared idempotent=True"
        )
        if self._may_repeat(request.call.name):
            text = f"{AGAIN_MAX + 1} servers that had taken this call are gone, one after the other"
        frame = failure(request.number, "ServerLost", text)
        reply = self._keys.reply(request.caller.hex())
        push: list[Command] = [("RPUSH", reply, frame), ("PEXPIRE", reply, REPLY_MS)]
        return [("MULTI",), ("DEL", key), *push, ("EXEC",)]
