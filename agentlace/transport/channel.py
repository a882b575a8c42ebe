"""What is said on one connection to the broker: commands out, replies in.

A :class:`Channel` is owned by one thread or one lock. It connects when it is first used and
again after its connection was lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from agentlace.codec import Frame
from agentlace.errors import AgentlaceError, BrokerUnreachable, Closed
from agentlace.forks import check_process, process_number
from agentlace.transport import resp
from agentlace.transport.backoff import Backoff
from agentlace.transport.envelope import Envelope
from agentlace.transport.link import LEAST_S, Address, Link, in_steps
from agentlace.transport.pubsub import PLAIN, PubSub
from agentlace.transport.resp import Command, ErrorReply, Reply
from agentlace.transport.spin import Habit

if TYPE_CHECKING:
    from agentlace.transport.connection import Broker

CONNECT_TIMEOUT_S = 5.0
"""How long one attempt to connect may take."""
SLICE_S = 1.0
"""Blocking reads wait no longer than this at a time, so that a dead broker is noticed."""
MARGIN_S = 2.0
"""An answer that is so much later than it could be counts as a lost connection."""
PATIENCE_S = 10.0
"""An answer that its asker no longer waits for may be so late before the connection is lost."""


class Channel:
    """One connection to the broker, for one thread (or under its owner's lock).

    Only :meth:`unblock`, :meth:`interrupt` and :meth:`close` may be called from other threads.

    Attributes:
        timeout_s: how long a read or write may take before the connection counts as lost.
        connect_timeout_s: the same for an attempt to connect.
        spins: whether answers are looked for before sleeping (:mod:`agentlace.transport.spin`).
    """

    slice_s = SLICE_S
    can_move = True
    """Whether the broker can block while it moves from one list to another."""

    def __init__(self, broker: Broker, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.broker = broker
        self.connect_timeout_s = connect_timeout_s
        self.timeout_s = connect_timeout_s
        self.spins = False
        self.connects = 0
        self.connected_s = 0.0
        self._link: Link | None = None
        self._owed = 0
        self._asked_for: Sequence[Command] = ()
        self._asked = 0.0
        self._backoff = Backoff()
        self._failure: tuple[float, AgentlaceError] | None = None
        self._guard = threading.Lock()
        self._closed = False
        self._interrupts = 0
        self._made_in = process_number()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._link is not None

    @property
    def is_lost(self) -> bool:
        """Whether there was a connection, and there is none now."""
        return bool(self.connects) and self._link is None

    @property
    def server(self) -> Address | None:
        """Return the address of the server at the other end, None while there is none."""
        return None if (link := self._link) is None else link.address

    @property
    def home(self) -> str:
        """Return what tells channels apart that lead to different servers of one broker."""
        return ""

    def at(self, key: str) -> Channel:
        """Return the channel to use for a key: this one, unless another server has the key."""
        return self

    def everywhere(self) -> list[Channel]:
        """Return channels that together lead to all keys, for commands without a key."""
        return [self]

    def pubsub(self) -> PubSub:
        """Return what publish and subscribe are called at this broker."""
        return PLAIN

    def be_back_within(self, seconds: float) -> None:
        """Bound what follows by an owner's deadline, but leave it LEAST_S at least.

        A first connection takes its own time: programs have deadlines of 5 ms.
        """
        self.timeout_s = in_steps(max(seconds, LEAST_S))
        if self.connects:
            self.connect_timeout_s = self.timeout_s

    def call(self, *command: resp.Argument, timeout_s: float | None = None) -> Reply:
        """Send one command and return its reply.

        Raises:
            BrokerUnreachable: no connection, or it was lost; the command may have been executed.
            BrokerAuthFailed, StoreFull, Refused: the broker answered with an error.
        """
        return self.checked(self.exchange([command], timeout_s=timeout_s))[0]

    def exchange(self, commands: Sequence[Command], timeout_s: float | None = None) -> list[Reply]:
        """Send commands in one write and return their replies; refusals are returned, not raised.

        ``timeout_s`` takes the place of the attribute.

        Raises:
            BrokerUnreachable: no connection, or it was lost; the commands may have been executed.
            BrokerAuthFailed: the broker refuses the password.
        """
        self.send(commands, timeout_s)
        return [self.receive(timeout_s) for _ in commands]

    def checked(self, replies: list[Reply]) -> list[Reply]:
        """Return the replies if none of them is a refusal; raise the first one that is."""
        for reply in replies:
            if isinstance(reply, ErrorReply):
                error = self.broker.mapped(reply)
                if isinstance(error, BrokerUnreachable) and reply.code != "TRYAGAIN":
                    self.disconnect()  # this server cannot serve (any more): look for it anew
                raise error
        return replies

    def send(self, commands: Sequence[Command], timeout_s: float | None = None) -> None:
        """Send commands in one write, without waiting for their replies."""
        self.connect()
        while self._owed > 0:
            self.receive(timeout_s)
        self._asked = time.monotonic()
        self._write(commands, timeout_s)

    def trade(self, envelope: Envelope, frame: Frame, timeout_s: float) -> resp.Buffer | None:
        """Send a frame in its envelope, and return what the pop at the envelope's end popped.

        Returns:
            It, in writable memory of its own. None if anything else has come, or nothing yet: then
            the replies are to be received one by one.
        """
        link = self._link
        if link is None or self._owed or self._made_in != process_number():
            self.connect()
            while self._owed > 0:
                self.receive(timeout_s)
            link = self._current()
        self._owed = envelope.replies
        try:
            popped = link.trade(envelope, frame, timeout_s)
        except BaseException as error:
            self._give_up(error)
        if popped is not None:
            self._owed = 0
        else:
            self._asked_for = envelope.commands(frame)
        return popped

    def _write(self, commands: Sequence[Command], timeout_s: float | None) -> None:
        link, buffers = self._current(), resp.pack(commands)
        self._owed, self._asked_for = len(commands), commands
        try:
            link.limit(self.timeout_s if timeout_s is None else timeout_s)
            resp.write(link.sock, buffers)
        except BaseException as error:
            self._give_up(error)

    def receive(self, timeout_s: float | None = None) -> Reply:
        """Return the next reply."""
        link = self._current()
        try:
            link.limit(self.timeout_s if timeout_s is None else timeout_s, 1)
            reply = link.reader.read()
        except BaseException as error:
            self._give_up(error)
        if type(reply) is ErrorReply:
            reply.name_command(self._asked_for, len(self._asked_for) - self._owed)
        self._owed -= 1
        if not self._owed:
            self._asked_for = ()  # its arrays may be large
        return reply

    def _give_up(self, error: BaseException) -> NoReturn:
        """Drop the connection, since what was sent or received on it stays unfinished.

        Also if it is a Ctrl-C that came between: the next command would become a part of this one.
        """
        if isinstance(error, BlockingIOError):
            error = TimeoutError("timed out")
        lost = self._lost(error)
        if isinstance(error, Exception):
            raise lost from error
        raise error

    def wait(self, timeout_s: float) -> bool:
        """Wait until a reply can be received; False if none came in time."""
        link = self._current()
        try:
            return link.wait(timeout_s)
        except BaseException as error:  # perhaps it was closed from another thread
            self._give_up(error)

    def settle(self, timeout_s: float) -> None:
        """Wait for the replies that are owed to the last :meth:`send`.

        Raises:
            BrokerUnreachable: they did not come in time. The connection is kept for PATIENCE_S
                all the same, so that a slow one gets there in several attempts.
        """
        if self._owed <= 0 or self.wait(timeout_s):
            return
        waited_s = time.monotonic() - self._asked
        error = TimeoutError(f"no answer within {waited_s:.3g} s")
        raise self._lost(error) if waited_s > PATIENCE_S else self.broker.mapped(error)

    def connect(self) -> None:
        """Connect if there is no connection.

        Raises:
            BrokerUnreachable, BrokerAuthFailed: it fails.
            Closed: after :meth:`close`, or in a child of the process that made this channel: both
                would read from one stream of replies.

        Right after a failed attempt the same error is raised again without a new one: pauses
        between attempts grow from 50 ms to 1 s.
        """
        check_process(self._made_in, "this connection")
        if self._link is not None:
            return
        interrupts = self._interrupts
        if self._closed:
            raise Closed("this connection was closed")
        if self._failure and time.monotonic() < self._failure[0]:
            raise self._failure[1].with_traceback(None)
        try:
            link = self._open()
        except AgentlaceError as error:
            self._failure = (time.monotonic() + self._backoff.next_s(), error)
            raise
        self._failure = None
        self._backoff.reset()
        self._adopt(link, interrupts)

    def _open(self) -> Link:
        return self.broker.open(self.connect_timeout_s)

    def _adopt(self, link: Link, interrupts: int) -> None:
        """Use a new connection, unless it was interrupted while it was being opened."""
        with self._guard:
            if self._interrupts == interrupts:
                self._link, self._owed = link, 0
                link.habit = Habit() if self.spins else None
                self.connected_s = time.monotonic()
                self.connects += 1
                return
        link.disconnect()
        raise self._lost(None)

    def _current(self) -> Link:
        link = self._link
        if link is None:
            raise self._lost(None)
        return link

    def _lost(self, error: BaseException | None) -> AgentlaceError:
        self.disconnect()
        if self._closed:
            return Closed("this connection was closed")
        if not isinstance(error, Exception):
            error = OSError("the connection was interrupted")
        return self.broker.mapped(error)

    def disconnect(self) -> None:
        """Drop the connection; the next use connects anew."""
        with self._guard:
            link, self._link, self._owed, self._asked_for = self._link, None, 0, ()
        if link is not None:
            with contextlib.suppress(OSError):
                link.disconnect()

    def unblock(self) -> None:
        """End the blocking command that this channel's thread waits for, as if its time were over.

        Unlike :meth:`interrupt` this loses nothing that the command may just have popped.
        """
        link = self._blocked()
        if link is None or link.client_id is None:
            return self.interrupt()
        try:
            with contextlib.closing(self.broker.open(1.0, at=link.address)) as helper:
                (reply,) = helper.ask([("CLIENT", "UNBLOCK", link.client_id)], 1.0)
        except (AgentlaceError, OSError, resp.ProtocolError):
            reply = None
        if not isinstance(reply, int):
            self.interrupt()

    def _blocked(self) -> Link | None:
        """Return the connection on which this channel's thread may be waiting."""
        return self._link

    def interrupt(self) -> None:
        """Wake the thread that connects or reads with this channel: what it does fails."""
        with self._guard:
            self._interrupts += 1
            link = self._link
        if link is not None:
            link.shutdown()

    def close(self) -> None:
        """Close for good; a thread that reads from this channel wakes with Closed."""
        self._closed = True
        self.interrupt()
        self.disconnect()
