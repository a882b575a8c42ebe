"""A frame between commands that are the same again and again, packed once for all frames."""

from __future__ import annotations

from collections.abc import Sequence

from agentlace.codec import Frame
from agentlace.transport.resp import JOIN_BYTES, Buffer, Command, pack, packed_text


class Envelope:
    """Commands around a frame, the last of which pops from a list.

    Args:
        before: the command whose last argument is the frame, without it.
        between: commands that follow; they answer with integers, as ``before`` does.
        pop: the last command, a BLPOP or BLMOVE.

    Attributes:
        head: how the pop's answer begins, up to its value's size, if it popped anything.
        replies: so many replies come.
        before: what is sent before the frame and its size,
        after: and what after it.
        expected: the fewest bytes of all replies together; how they began the last time, up to the
            value that was popped; and how many bytes they had then.
    """

    def __init__(self, before: Sequence[str], between: Sequence[Command], pop: Command) -> None:
        self._push = before
        self._rest = [*between, pop]
        self.before = b"*%d\r\n" % (len(before) + 1) + b"".join(map(packed_text, before))
        self.after = b"".join((b"\r\n", *pack(self._rest)))
        is_plain = pop[0] == "BLMOVE"  # a BLPOP's value comes with its key
        self.head = b"$" if is_plain else b"*2\r\n%b$" % packed_text(str(pop[1]))
        self.replies = 1 + len(self._rest)
        least_bytes = len(b":1\r\n") * len(self._rest) + len(b"*-1\r\n")
        self.expected = (least_bytes, b"", -1)

    def commands(self, frame: Frame) -> list[Command]:
        """Return the commands, the frame in its place."""
        return [(*self._push, frame), *self._rest]

    def packed(self, frame: Frame) -> list[Buffer]:
        """Return the buffers that, written one after the other, send the commands."""
        parts, nbytes = frame
        size = b"$%d\r\n" % nbytes
        if nbytes <= JOIN_BYTES:
            return [b"".join((self.before, size, *parts, self.after))]
        first, *parts = parts
        return [b"".join((self.before, size, first)), *parts, self.after]
