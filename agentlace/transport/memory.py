"""A broker inside this process, on fakeredis: for tests, notebooks and single-process runs."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from agentlace.codec import Frame
from agentlace.errors import MissingExtra
from agentlace.forks import freed_by_fork
from agentlace.transport import resp
from agentlace.transport.channel import Channel
from agentlace.transport.envelope import Envelope
from agentlace.transport.link import Link
from agentlace.transport.resp import Command, ErrorReply, Reply

_servers: dict[str, Any] = {}
_servers_lock = freed_by_fork(threading.Lock())


if hasattr(os, "register_at_fork"):
    # A copy of the parent's broker would look as if it were shared.
    os.register_at_fork(after_in_child=_servers.clear)


def _server(name: str) -> Any:
    """Return the in-process server of this name, made at first use."""
    try:
        import fakeredis
    except ImportError as error:
        raise MissingExtra("fakeredis", "memory") from error
    with _servers_lock:
        if name not in _servers:
            _servers[name] = fakeredis.FakeServer(version=(7,))
        return _servers[name]


class MemoryChannel(Channel):
    """A channel to an in-process broker. A blocking command blocks while it is being sent."""

    slice_s = 0.1
    can_move = False

    def _open(self) -> Link:
        server = _server(self.broker.url.host)
        import fakeredis

        try:
            client = fakeredis.FakeRedis(server=server, protocol=2)
            connection: Any = client.connection_pool.make_connection()
            connection.connect()
        except Exception as error:
            raise self.broker.mapped(error) from error
        return Link(connection, connection, None, lambda: _disconnect(connection))

    def trade(self, envelope: Envelope, frame: Frame, timeout_s: float) -> resp.Buffer | None:
        """Send a frame in its envelope; the replies are to be received one by one."""
        self.send(envelope.commands(frame), timeout_s)
        return None

    def _write(self, commands: Sequence[Command], timeout_s: float | None) -> None:
        connection = self._current().sock
        self._owed = len(commands)
        try:
            for command in commands:
                connection.send_command(*[_plain(argument) for argument in command])
        except BaseException as error:
            self._give_up(error)

    def receive(self, timeout_s: float | None = None) -> Reply:
        """Return the next reply of the commands that were executed."""
        import redis

        connection = self._current().reader
        self._owed -= 1
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            return ErrorReply(str(error))
        except BaseException as error:
            self._give_up(error)

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message can be received; False if none came in time."""
        connection = self._current().sock
        try:
            return bool(connection.can_read(min(timeout_s, self.slice_s)))
        except BaseException as error:
            self._give_up(error)

    def interrupt(self) -> None:
        """Do nothing: waits are short here, and their loops look at their stop event."""


def _disconnect(connection: Any) -> None:
    with contextlib.suppress(ValueError):  # another thread is in the middle of a command
        connection.disconnect()


def _plain(argument: resp.Argument) -> Any:
    return bytes(argument) if isinstance(argument, Frame) else argument
