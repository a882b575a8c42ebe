"""How a server takes requests: into lists of its own, where they are found if it is lost.

A request is moved (``BLMOVE``) from the service's list into a place of its server: a list that
holds this one request, and goes with the reply, in the same write. One list per place, since
that is removed without saying which of many requests is meant: they can be large.

A broker before Redis 6.2, one in this process, and users' rules of an earlier version do not let
a server do that. Then requests are popped, and are lost with their server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

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
        moves: whether requests are moved into places.
        count: how many places there are.
    """

    def __init__(self, keys: ServiceKeys, server: str = "", places: int = 0) -> None:
        self._keys = keys
        self._server = server
        self.count = places
        self.moves = places > 0
        self._lists = [keys.inflight(server, place) for place in range(places)]
        self._free = list(range(places - 1, -1, -1))  # the last one freed is the next one taken
        self._high = 0
        self._has_warned = False

    def take(self) -> int:
        """Return a free place, which is nobody else's until it is freed.

        Raises:
            IndexError: none is free.
        """
        if not self.count:
            return NOWHERE
        place = self._free.pop()
        self._high = max(self._high, place + 1)
        return place

    def free(self, places: Iterable[int]) -> None:
        """Let places be used again."""
        if self.count:
            self._free.extend(places)

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
        if not self.moves:
            return []
        target = self._keys.requests
        return [("LMOVE", self._lists[place], target, "LEFT", "LEFT") for place in places]

    def into(self, place: int) -> str:
        """Return the list of a place; empty if requests are popped."""
        return self._lists[place] if self.moves else ""

    def begin(self, channel: Channel, place: int) -> None:
        """Say at a new connection that there are places, and give back what is in free ones.

        A connection that was lost may have moved a request there, and nobody has seen it.

        Args:
            channel: to the broker.
            place: where the next request goes.
        """
        if not self.count:
            return
        self.moves = channel.can_move
        if not self.moves:
            return
        free = [p for p in [*self._free, place] if p < self._high]
        register = ("HSET", self._keys.servers, self._server, self.count)
        replies = channel.exchange([register, *self.give_back(free)])
        refused = next((reply for reply in replies if isinstance(reply, ErrorReply)), None)
        if refused is None or not _is_for_good(refused):
            channel.checked(replies)
            return
        self.moves = False
        if not self._has_warned:
            log.warning("%s: what it holds is lost if it is killed: %s", self._keys.name, refused)
        self._has_warned = True


def _is_for_good(refusal: ErrorReply) -> bool:
    return refusal.code == "NOPERM" or "unknown command" in str(refusal)
