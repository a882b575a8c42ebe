"""The Redis protocol (RESP 2) on a socket: commands out without copies, replies in likewise.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/

redis-py opens the connection (addresses, TLS, passwords); this module then reads and writes
its socket. Large bulk strings are received straight into memory of the right size, which the
codec's arrays then refer to: with a general parser, growing its buffer and copying out of it
costs more than the transfer itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentlace.codec import MAX_FRAME_BYTES, Frame
from agentlace.transport import pool

if TYPE_CHECKING:
    from agentlace.transport.envelope import Envelope

Argument = str | bytes | int | Frame
Command = Sequence[Argument]
Buffer = bytes | bytearray | memoryview
Reply = Any
"""None, int, bytes, memoryview (a large bulk string, writable), ErrorReply, or a list of them."""

READ_BYTES = 64 << 10
"""Size of the buffer for small replies; larger bulk strings get memory of their own."""
GLANCE_BYTES = 256
"""So much is received to learn the size of a reply that is likely to be large."""
JOIN_BYTES = 16 << 10
"""Buffers up to this size are joined before they are written: fewer and larger segments."""
PIECE_BYTES = 256 << 10
"""So much is written to a TLS socket at a time."""
MAX_ITEMS = 10_000_000
MAX_DEPTH = 16
_BULK, _INTEGER, _ARRAY, _STATUS, _ERROR = b"$:*+-"
_MAX_IOVECS = min(os.sysconf("SC_IOV_MAX"), 1024) if hasattr(os, "sysconf") else 16


class ProtocolError(Exception):
    """What answers does not speak the Redis protocol."""


class ErrorReply(Exception):
    """An error that the server answered: its code (``WRONGPASS``) and its whole text.

    ``command`` is what it answered, with its key and without its values, as far as is known.
    """

    def __init__(self, text: str) -> None:
        """Split the code off the server's text."""
        super().__init__(text)
        self.code = text.split(" ", 1)[0]
        self.command = ""

    def name_command(self, sent: Sequence[Command], number: int) -> None:
        """Take note that it answers this one of the commands that were sent, if it is one."""
        if 0 <= number < len(sent):
            self.command = described(sent[number])


def described(command: Command) -> str:
    """Return a command's name and the first key or channel in it, without any value."""
    name = str(command[0])
    texts = (argument for argument in command[1:3] if isinstance(argument, str))
    return next((f"{name} {text}" for text in texts if text.startswith("al:")), name)


def pack(commands: Iterable[Command]) -> list[Buffer]:
    """Return the buffers that, written one after the other, send the commands."""
    out: list[Buffer] = []
    small: list[Buffer] = []
    for command in commands:
        small.append(b"*%d\r\n" % len(command))
        for argument in command:
            if isinstance(argument, str):
                small.append(packed_text(argument))
            elif isinstance(argument, Frame):
                _pack_frame(argument, small, out)
            else:
                raw = b"%d" % argument if isinstance(argument, int) else argument
                small.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    out.append(b"".join(small))
    return out


@lru_cache(maxsize=1024)
def packed_text(text: str) -> bytes:
    """Return a text as an argument; commands and keys are the same again and again."""
    raw = text.encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def _pack_frame(frame: Frame, small: list[Buffer], out: list[Buffer]) -> None:
    small.append(b"$%d\r\n" % frame.nbytes)
    if frame.nbytes <= JOIN_BYTES:
        small += frame.parts
    else:
        out.append(b"".join(small))
        out += frame.parts
        small.clear()
    small.append(b"\r\n")


def write(sock: socket.socket, buffers: list[Buffer]) -> None:
    """Write all buffers, without joining the large ones where the socket can do that."""
    if type(sock) is not socket.socket:  # TLS has no scatter-gather
        for buffer in buffers:
            _write_in_pieces(sock, memoryview(buffer))
    elif len(buffers) == 1 and len(buffers[0]) <= JOIN_BYTES:
        sock.sendall(buffers[0])
    else:
        _write_gathered(sock, buffers)


def _write_in_pieces(sock: socket.socket, view: memoryview) -> None:
    """Write so that the socket's timeout bounds each piece: a slow link may take its time."""
    while view:
        view = view[sock.send(view[:PIECE_BYTES]) :]


def _write_gathered(sock: socket.socket, buffers: list[Buffer]) -> None:
    first = 0
    views = [memoryview(buffer) for buffer in buffers]
    while first < len(views):
        sent = sock.sendmsg(views[first : first + _MAX_IOVECS])
        while first < len(views) and sent >= len(views[first]):
            sent -= len(views[first])
            first += 1
        if sent:
            views[first] = views[first][sent:]


class ReplyReader:
    """Reads replies from a socket. Not thread-safe; broken after any exception."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._is_plain = type(sock) is socket.socket and hasattr(sock, "recvmsg_into")
        self._glance = self._view[:GLANCE_BYTES]
        self._expects_large = False

    @property
    def has_data(self) -> bool:
        """Whether bytes of the next reply were already received."""
        return self._start < self._end

    @property
    def room(self) -> memoryview:
        """Return where somebody else may receive into for it, while it has no data."""
        return self._glance if self._expects_large else self._view

    def took(self, count: int) -> None:
        """Take note that so many bytes were received into :attr:`room`; raises OSError if none."""
        self._start, self._end = 0, self._received(count)

    def read(self, depth: int = 0) -> Reply:
        """Return the next reply; errors of the server are returned, not raised.

        Raises:
            OSError: the connection was lost, or the socket's timeout passed.
            ProtocolError: the bytes are no RESP.
        """
        end = self._buffer.find(b"\r\n", self._start, self._end)
        if end < 0:
            end = self._end_of_line()
        kind = self._buffer[self._start]
        value = self._buffer[self._start + 1 : end]
        self._start = end + 2
        if kind == _BULK:
            size = _number(value, MAX_FRAME_BYTES)
            return None if size < 0 else self._bulk(size)
        if kind == _INTEGER:
            return _number(value)
        if kind == _ARRAY:
            count = _number(value, MAX_ITEMS)
            if depth > MAX_DEPTH:
                raise ProtocolError("a reply that is nested too deeply")
            return None if count < 0 else [self.read(depth + 1) for _ in range(count)]
        if kind == _STATUS:
            return bytes(value)
        if kind == _ERROR:
            return ErrorReply(value.decode(errors="replace"))
        raise ProtocolError(f"a reply that begins with {chr(kind)!r} and {bytes(value[:20])!r}")

    def _end_of_line(self) -> int:
        """Receive until the line that begins here is whole; returns where it ends."""
        searched = self._start
        while (end := self._buffer.find(b"\r\n", searched, self._end)) < 0:
            offset = max(searched, self._end - 1) - self._start
            self._receive()
            searched = self._start + offset
        return end

    def _bulk(self, size: int) -> Buffer:
        """Return a bulk string: small ones as bytes, large ones as their own memory."""
        if size <= READ_BYTES // 2:
            while self._end - self._start < size + 2:
                self._receive()
            data = bytes(self._view[self._start : self._start + size])
            self._start += size + 2
            return data
        return self._filled(pool.memory(size).data)

    def _filled(self, memory: memoryview) -> memoryview:
        """Receive a bulk string into its own memory, and its end."""
        size, came = len(memory), self._end - self._start
        filled = min(size, came)
        memory[:filled] = self._view[self._start : self._start + filled]
        if self._is_plain:  # nothing but what must come: in one system call, if all goes well
            missing = size + 2 - came
            while missing > 0:
                rest: list[Any] = [memory[size + 2 - missing :], bytearray(min(2, missing))]
                missing -= self._received(self._sock.recvmsg_into(rest, 0, socket.MSG_WAITALL)[0])
            self._start = min(self._end, self._start + size + 2)
            return memory
        self._start += filled
        while filled < size:
            filled += self._received(self._sock.recv_into(memory[filled:]))
        while self._end - self._start < 2:
            self._receive()
        self._start += 2
        return memory

    def popped(self, envelope: Envelope) -> Buffer | None:
        """Return what was popped, if the replies to an envelope are integers and then that.

        Returns:
            It, in writable memory of its own. None if anything else has come, or not so much yet;
            then nothing was read.

        Raises:
            OSError, ProtocolError: as :meth:`read`.
        """
        if self._start == self._end:
            self._start = 0
            glance = self._glance if self._expects_large else self._view
            self._end = end = self._sock.recv_into(glance)
            _, usual, usual_bytes = envelope.expected
            if end == usual_bytes and self._buffer.startswith(usual):
                self._start = end
                return self._buffer[len(usual) : end - 2]
            self._received(end)
        size = self._size_of_popped(envelope)
        return None if size is None else self._own_bulk(size)

    def _size_of_popped(self, envelope: Envelope) -> int | None:
        """Read up to the value that was popped and return its size; None as in :meth:`popped`."""
        at, end, buffer, head = self._start, self._end, self._buffer, envelope.head
        for _ in range(envelope.replies - 1):
            if at == end or buffer[at] != _INTEGER:
                return None
            at = buffer.find(b"\r\n", at, end) + 2
            if at == 1:
                return None
        stop = buffer.find(b"\r\n", at + len(head), end)
        if stop < 0 or not buffer.startswith(head, at):
            return None
        size = _number(buffer[at + len(head) : stop], MAX_FRAME_BYTES)
        if size < 0:
            return None
        if self._start == 0:
            least = envelope.expected[0]
            envelope.expected = least, bytes(buffer[: stop + 2]), stop + size + 4
        self._expects_large = size > READ_BYTES // 2
        self._start = stop + 2
        return size

    def _own_bulk(self, size: int) -> Buffer:
        """Return a bulk string in writable memory of its own.

        On a plain socket no more is received than it takes.
        """
        start, end = self._start, self._start + size
        if end + 2 <= self._end:
            self._start = end + 2
            return self._buffer[start:end]
        is_large = size > READ_BYTES // 2
        return self._filled(pool.memory(size).data if is_large else memoryview(bytearray(size)))

    def fill(self) -> None:
        """Receive what comes next, without looking at it; raises as :meth:`read`."""
        self._receive()

    def _receive(self) -> None:
        """Receive more into the buffer, moving what is left in it to its beginning first."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == READ_BYTES:
            if self._start == 0:
                raise ProtocolError("a reply with an endless line")
            left = self._end - self._start
            self._view[:left] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, left
        self._end += self._received(self._sock.recv_into(self._view[self._end :]))

    @staticmethod
    def _received(count: int) -> int:
        if count == 0:
            raise ConnectionResetError("the broker closed the connection")
        return count


def _number(digits: bytearray, limit: int = 1 << 63) -> int:
    try:
        number = int(digits)
    except ValueError:
        raise ProtocolError(f"a number of {bytes(digits[:20])!r}") from None
    if number > limit:
        raise ProtocolError(f"a reply of {number} bytes or items is more than {limit}")
    return number
