"""How a server takes requests: into lists of its own, where they are found if it is lost.

A request is moved (``BLMOVE``) from the service's list into a place of its server: a list that
holds this one request, and goes with the reply, in the same write. One list per place, since
that is removed without saying which of many requests is meant: they can be large.

It costs the broker a key made and removed for each request, some ten microseconds. So requests
are only moved where that is wanted: where there is another server that could see to them, or
they may be executed again. Where it is not, they are popped, and are lost with their server; so
they are with a broker before Redis 6.2, with one in this process, and with users' rules of an
earlier version.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from agentlace.logs import about
from agentlace.transport.channel import Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.resp import Command, ErrorReply, Reply

log = logging.getLogger(__name__)

NOWHERE = -1
"""The place of a request that is not kept at the broker."""


class Intake:
    """The places of one server, and the commands that fill and empty them.

    Threads may take and free places at the same time; :meth:`begin` is for one of them.

    Args:
        keys: of the service.
        server: this server's token, by which its places are known. Not needed without places.
        places: how many; 0: requests are popped.

    Attributes:
        wanted: whether requests are to be moved into places; anybody may say so.
        moves: whether they are, which :meth:`begin` decides.
        is_refused: the broker does not do it, or this user may not.
        count: how many places there are.
    """

    def __init__(self, keys: ServiceKeys, server: str = "", places: int = 0) -> None:
        self._keys = keys
        self._server = server
        self.count = places
        self.wanted = False
        self.moves = False
        self.is_refused = not places
        self._lists = [keys.inflight(server, place) for place in range(places)]
        self._free = list(range(places - 1, -1, -1))  # the last one freed is the next one taken
        self._high = 0

    @property
    def must_begin(self) -> bool:
        """Whether requests are popped though they are to be moved."""
        return self.wanted and not self.moves and not self.is_refused

    def take(self) -> int:
        """Return a free place, which is nobody else's until it is freed.

        Raises:
            IndexError: none is free.
        """
        if not self.moves:
            return NOWHERE
        place = self._free.pop()
        self._high = max(self._high, place + 1)
        return place

    def free(self, places: Iterable[int]) -> None:
        """Let places be used again."""
        self._free.extend(place for place in places if place != NOWHERE)

    @property
    def room(self) -> int:
        """Return how many places are free."""
        return len(self._free)

    def held(self) -> list[int]:
        """Return the places that are not free, as far as that can be told while others work."""
        free = set(self._free)
        return [place for place in range(self._high) if place not in free]

    def pop(self, place: int, slice_s: float) -> Command:
        """Return the command that waits for a request."""
        source = self._keys.requests
        if not self.moves:
            return ("BLPOP", source, f"{slice_s:g}")
        return ("BLMOVE", source, self._lists[place], "LEFT", "RIGHT", f"{slice_s:g}")

    def popped(self, reply: Reply) -> Any:
        """Return the request's bytes in the reply to :meth:`pop`; None if its time was over."""
        return reply if self.moves or reply is None else reply[1]

    def grab(self, place: int) -> Command:
        """Return the command that takes a request, if one is there."""
        if not self.moves:
            return ("LPOP", self._keys.requests)
        return ("LMOVE", self._keys.requests, self._lists[place], "LEFT", "RIGHT")

    def drop(self, places: Iterable[int]) -> list[Command]:
        """Return the commands that remove what is in places."""
        lists = [self._lists[place] for place in places if place != NOWHERE]
        return [("DEL", *lists)] if lists and self.moves else []

    def give_back(self, places: Iterable[int]) -> list[Command]:
        """Return the commands that move what is in places back, for any server to take first."""
        lists = [self._lists[place] for place in places if place != NOWHERE]
        return [("LMOVE", key, self._keys.requests, "LEFT", "LEFT") for key in lists]

    def register(self) -> Command:
        """Return the command that says where to look for what this server has taken."""
        return ("HSET", self._keys.servers, self._server, self.count)

    def begin(self, channel: Channel, place: int) -> None:
        """Say at a new connection that there are places, and give back what is in free ones.

        A connection that was lost may have moved a request there, and nobody has seen it.

        Args:
            channel: to the broker.
            place: where the next request goes.
        """
        if self.is_refused:
            return
        moves = self.wanted and channel.can_move
        self.is_refused = self.wanted and not moves
        vacant = [p for p in self._free if p < self._high]
        backs = self.give_back([*vacant, place if place != NOWHERE else 0]) if moves else []
        replies = channel.exchange([self.register(), *backs])
        refused = next((reply for reply in replies if isinstance(reply, ErrorReply)), None)
        if refused is not None and _is_for_good(refused):
            self.note_refused(str(refused))
            return
        channel.checked(replies)
        self.moves = moves

    def note_refused(self, why: str) -> None:
        """Give up places; says so."""
        self.is_refused, self.moves = True, False
        text = "%s: what it has taken is lost if it is killed: %s"
        log.warning(text, self._keys.name, why, extra=about(self._keys.labels))


def _is_for_good(refusal: ErrorReply) -> bool:
    return refusal.code == "NOPERM" or "unknown command" in str(refusal)
