"""A connection that stands: its socket, and how long each read and write may take."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentlace import native
from agentlace.codec import Frame
from agentlace.forks import process_number
from agentlace.transport import resp
from agentlace.transport.envelope import Envelope
from agentlace.transport.resp import Buffer
from agentlace.transport.spin import Habit, spin

STEP_S = 0.25
LEAST_S = 0.5
"""However soon its owner's deadline, an answer of the broker is awaited for so long."""
Address = tuple[str, int]
"""Host and port of a server; a Unix socket's path and 0."""


def in_steps(seconds: float) -> float:
    """Round a timeout up to STEP_S: each other value costs two system calls."""
    return math.ceil(seconds / STEP_S) * STEP_S


class Link:
    """A connection that stands.

    Attributes:
        habit: whether its answers are looked for before sleeping; None: never.

    On a plain socket the kernel keeps the time of each read and write (SO_RCVTIMEO): with a
    timeout of Python's, each would cost a poll beside the call itself.
    """

    def __init__(
        self,
        sock: Any,
        reader: Any,
        client_id: int | None,
        disconnect: Callable[[], None],
        address: Address = ("", 0),
    ) -> None:
        self.sock = sock
        self.reader: Any = reader
        self.client_id = client_id
        self.disconnect = disconnect
        self.address = address
        self._made_in = process_number()
        self.is_plain = type(sock) is socket.socket and os.name == "posix"
        # With TCP, a read that has taken the first bytes is not woken by the rest if that is less.
        self._waits_for_more = self.is_plain and sock.family == socket.AF_UNIX
        self.habit: Habit | None = None
        self._limit_s: float | None = None
        self._least = 1
        if self.is_plain:
            sock.settimeout(None)

    def trade(self, envelope: Envelope, frame: Frame, timeout_s: float) -> Buffer | None:
        """Send a frame in its envelope, and return what the pop at its end popped.

        All of it is in one function, and what came the last time is what is looked for first:
        right after having slept, each line that is run costs more than most of what it does.

        Returns:
            None if anything else has come, or not so much yet; then nothing was read.
        """
        least = envelope.expected[0]
        if timeout_s != self._limit_s or least != self._least:
            self.limit(timeout_s, least)
        reader, begin = self.reader, time.perf_counter()
        micros = self.habit.micros if self.habit else 0
        direct = native.trade if self.is_plain and not reader.has_data else None
        if direct is not None and len(frame.parts) <= native.MAX_PARTS:
            room, fd = reader.room, self.sock.fileno()
            popped = direct(
                fd, envelope.before, *frame, envelope.after, room, micros, *envelope.expected
            )
            if type(popped) is not bytearray:
                reader.took(popped)
                popped = reader.popped(envelope)
        else:
            resp.write(self.sock, envelope.packed(frame))
            if micros and self.is_plain and not reader.has_data:
                spin(self.sock.fileno(), least, micros)
            popped = reader.popped(envelope)
        if self.habit:
            self.habit.note(time.perf_counter() - begin)
        return popped

    def limit(self, timeout_s: float, least: int = 0) -> None:
        """Bound each read and write from now on.

        Args:
            timeout_s: its time.
            least: a read waits for so many bytes (SO_RCVLOWAT): an answer that tells nothing would
                wake its reader only for it to wait again. 0 leaves it as it is, for writes; where
                fewer bytes may come it is 1. Without effect but on Unix sockets.
        """
        if least and least != self._least:
            self._least = least
            if self._waits_for_more:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        if timeout_s == self._limit_s:
            return
        self._limit_s = timeout_s
        if not self.is_plain:
            self.sock.settimeout(timeout_s)
            return
        micros = max(1000, int(timeout_s * 1e6))  # none would mean without end
        value = struct.pack("@ll", *divmod(micros, 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def wait(self, timeout_s: float) -> bool:
        """Wait until something can be read; False if nothing came in time."""
        if self.reader.has_data or (hasattr(self.sock, "pending") and self.sock.pending()):
            return True
        if self.is_plain and timeout_s >= LEAST_S:
            return self._filled(in_steps(timeout_s))
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def _filled(self, timeout_s: float) -> bool:
        """Receive what comes next, as a read would anyway: one system call, not two."""
        begin = time.perf_counter()
        try:
            self.limit(timeout_s, 1)
            if self.habit and self.habit.micros:
                spin(self.sock.fileno(), 1, self.habit.micros)
            self.reader.fill()
        except BlockingIOError:
            return False
        if self.habit:
            self.habit.note(time.perf_counter() - begin)
        return True

    def shutdown(self) -> None:
        """Wake the thread that reads from it: what it does fails.

        Not in a child process: it would end the connection of its parent.
        """
        if self._made_in != process_number():
            return
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self.disconnect()

    def ask(self, commands: Sequence[resp.Command], timeout_s: float) -> list[resp.Reply]:
        """Send commands and return their replies; raises what the socket or the reader does."""
        self.limit(timeout_s)
        resp.write(self.sock, resp.pack(commands))
        return [self.reader.read() for _ in commands]
