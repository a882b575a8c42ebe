"""How one thread of an inference server takes requests, and sends answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agentlace.errors import AgentlaceError
from agentlace.inference.desk import Desk
from agentlace.inference.execution import Answered
from agentlace.logs import Refrain, about
from agentlace.transport.channel import MARGIN_S, Channel
from agentlace.transport.inflight import Intake
from agentlace.transport.keys import REPLY_MS, ServiceKeys
from agentlace.transport.request_frames import RequestReader
from agentlace.transport.resp import Command, ErrorReply, Reply

log = logging.getLogger(__name__)

AT_ONCE = 64
"""So many requests are taken in one write."""
RESERVE = 2
"""So many places are left for requests that are waited for."""
LEAST_WAIT_S = 0.002
"""Redis 6.2 takes less for none at all, which means without end."""


class Taker:
    """Takes requests for one thread, on its channel, and lets them wait at the desk.

    Args:
        channel: that thread's.
        keys: of the service.
        intake: the server's places.
        desk: the server's.
        note_unreadable: called with a request that cannot be read, and why.
    """

    def __init__(
        self,
        channel: Channel,
        keys: ServiceKeys,
        intake: Intake,
        desk: Desk,
        note_unreadable: Callable[[Any, AgentlaceError], None],
    ) -> None:
        self.channel = channel
        self._keys = keys
        self._intake = intake
        self._desk = desk
        self._note_unreadable = note_unreadable
        self._reader = RequestReader()
        self._refrain = Refrain()
        self._unsent: list[Answered] = []
        self._unreadable: list[int] = []
        self._unknown: list[int] = []

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left over from a connection that was lost."""
        return not (self._unsent or self._unreadable or self._unknown)

    def grab(self, count: int, wait_s: float = 0.0) -> int:
        """Take up to so many requests, and refuse what need not wait.

        Args:
            count: how many at most.
            wait_s: how long to wait for the first one, in seconds.

        Returns:
            How many there were.

        Raises:
            BrokerUnreachable, BrokerAuthFailed, StoreFull: the broker is away, or refuses; what
                is left over is seen to by :meth:`settle`.
        """
        with self._desk.lock:
            self.settle()
            places = self._places(count)
            if not places:
                return 0
            replies = self._ask(places, wait_s)
            taken = 0
            for reply, place in zip(replies, places, strict=True):
                if reply is None or isinstance(reply, ErrorReply):
                    self._intake.free([place])
                else:
                    taken += 1
                    self._enter(reply, place)
        self.settle()
        self.channel.checked([reply for reply in replies if isinstance(reply, ErrorReply)])
        return taken

    def _places(self, count: int) -> list[int]:
        """Return places for so many requests, or for fewer."""
        intake = self._intake
        room = intake.room if intake.moves else intake.count - len(self._desk.queue)
        count = min(count, AT_ONCE, room - RESERVE)
        return [intake.take() for _ in range(count)]

    def _ask(self, places: list[int], wait_s: float) -> list[Reply]:
        """Have requests moved into places; returns them, None for each that is not there."""
        intake, self._unknown = self._intake, places
        commands = [intake.grab(place) for place in places]
        if wait_s > 0:
            commands[0] = intake.pop(places[0], max(wait_s, LEAST_WAIT_S))
        replies = self.channel.exchange(commands, wait_s + MARGIN_S)
        if wait_s > 0 and not isinstance(replies[0], ErrorReply):
            replies[0] = intake.popped(replies[0])
        self._unknown = []
        return replies

    def _enter(self, data: Any, place: int) -> None:
        try:
            self._unsent += self._desk.enter(self._reader.read(data, place))
        except AgentlaceError as error:
            self._note_unreadable(data, error)
            self._unreadable.append(place)

    def send(self, answered: Iterable[Answered]) -> None:
        """Send answers; what they answer leaves its place, in the same write.

        Raises:
            BrokerUnreachable, BrokerAuthFailed: as :meth:`grab`.
        """
        self._unsent += answered
        self.settle()

    def settle(self) -> None:
        """Send what could not be sent, and give back what may have been moved here unseen."""
        if self.is_settled:
            return
        intake, answered = self._intake, self._unsent
        commands = [
            *self._answers(answered),
            *intake.drop(self._unreadable),
            *intake.give_back(self._unknown),
        ]
        for reply in self.channel.exchange(commands) if commands else ():
            if isinstance(reply, ErrorReply):
                text, fields = (
                    "%s could not send a reply: %s",
                    about(self._keys.labels, error=reply),
                )
                self._refrain.say(log.error, reply, text, self._keys.name, reply, extra=fields)
        intake.free([r.place for r, _ in answered] + self._unreadable + self._unknown)
        self._unsent, self._unreadable, self._unknown = [], [], []

    def _answers(self, answered: Sequence[Answered]) -> list[Command]:
        commands: list[Command] = []
        for request, frame in answered:
            if frame is not None:
                key = self._keys.reply(request.caller.hex())
                commands += [("RPUSH", key, frame), ("PEXPIRE", key, REPLY_MS)]
        return [*commands, *self._intake.drop(request.place for request, _ in answered)]
