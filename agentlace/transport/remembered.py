"""The last replies to each caller: a repeated request is answered, and not executed again."""

from __future__ import annotations

from collections import OrderedDict

from agentlace.codec import Frame

REMEMBERED_CALLERS = 256
"""Of so many callers the last replies are remembered."""
REMEMBERED_BYTES = 64 << 20
"""Their replies together; the oldest go first."""
REMEMBERED_REPLIES = 4
"""So many of each: a caller may repeat one request while others of its threads go on."""


class Remembered:
    """The last replies to each caller. Not thread-safe.

    Attributes:
        callers: by caller, by the request's number; the caller that was answered last is last.
        nbytes: of all replies.
    """

    def __init__(self) -> None:
        self.callers: OrderedDict[bytes, OrderedDict[int, Frame]] = OrderedDict()
        self.nbytes = 0

    def find(self, caller: bytes, number: int) -> Frame | None:
        """Return the reply to a request; None if it is not remembered."""
        replies = self.callers.get(caller)
        return None if replies is None else replies.get(number)

    def add(self, caller: bytes, number: int, reply: Frame) -> None:
        """Keep a reply, and forget what is too much."""
        # The handler may change its arrays afterwards, so the reply is kept in bytes of its own.
        is_own = len(reply.parts) == 1 and type(reply.parts[0]) is bytes
        replies = self.callers.get(caller)
        if replies is None:
            replies = self.callers[caller] = OrderedDict()
        replies[number] = reply if is_own else Frame([bytes(reply)], reply.nbytes)
        self.nbytes += reply.nbytes
        self.callers.move_to_end(caller)
        if len(replies) > REMEMBERED_REPLIES:
            self.nbytes -= replies.popitem(last=False)[1].nbytes
        while len(self.callers) > 1 and (
            len(self.callers) > REMEMBERED_CALLERS or self.nbytes > REMEMBERED_BYTES
        ):
            _, gone = self.callers.popitem(last=False)
            self.nbytes -= sum(frame.nbytes for frame in gone.values())
