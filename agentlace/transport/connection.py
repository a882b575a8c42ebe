"""Connections to the broker; the only module that knows redis-py.

A :class:`Broker` is an address and what was learned about it (its clock, its Unix socket).
redis-py opens its connections, and every error of redis-py or the socket comes out as one of
:mod:`agentlace.errors`. What is said on a connection is a :class:`Channel`'s business.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentlace.config import BrokerURL
from agentlace.errors import (
    AgentlaceError,
    BrokerAuthFailed,
    BrokerUnreachable,
    StoreFull,
)
from agentlace.transport.channel import CONNECT_TIMEOUT_S, MARGIN_S, Channel
from agentlace.transport.link import Link
from agentlace.transport.resp import ErrorReply, ReplyReader

__all__ = ["CONNECT_TIMEOUT_S", "MARGIN_S", "Broker", "Channel", "Refused", "mapped"]

SOCKET_BUFFER_BYTES = 4 << 20

Connection = Any
"""A redis-py connection; its classes are only partly typed."""
_redis: Any = redis
_AUTH_ERRORS = (
    redis.AuthenticationError,
    redis.exceptions.AuthenticationWrongNumberOfArgsError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)
_RETRY_ERRORS = (redis.ReadOnlyError, redis.exceptions.ClusterError, redis.exceptions.TryAgainError)
_AUTH_CODES = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "DENIED"})
_RETRY_CODES = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY"})
_FULL_CODES = frozenset({"OOM", "MISCONF"})


class Refused(AgentlaceError):
    """The broker refused a command; ``code`` is the first word of its answer."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"the broker refused a command: {text}")


def mapped(error: Exception, url: BrokerURL) -> AgentlaceError:
    """Return the agentlace error for one of redis-py, of the socket, or of the server."""
    if isinstance(error, AgentlaceError):
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, ErrorReply):
        return _mapped_reply(error.code, text, url)
    if isinstance(error, _AUTH_ERRORS):
        return BrokerAuthFailed(str(url), text)
    if isinstance(error, redis.OutOfMemoryError):
        return _mapped_reply("OOM", text, url)
    if isinstance(error, redis.ResponseError) and not isinstance(error, _RETRY_ERRORS):
        return Refused(text.split(" ", 1)[0], text)
    return BrokerUnreachable(str(url), text)


def _mapped_reply(code: str, text: str, url: BrokerURL) -> AgentlaceError:
    if code in _AUTH_CODES:
        return BrokerAuthFailed(str(url), text)
    if code in _RETRY_CODES:
        return BrokerUnreachable(str(url), text)
    if code in _FULL_CODES:
        return StoreFull(
            f"the broker at {url} has no room ({text}): start or speed up the consumers of its "
            "streams, or raise its maxmemory"
        )
    return Refused(code, text)


class Broker:
    """An address, and what was learned about the broker there."""

    def __init__(self, url: BrokerURL) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._socket_path: str | None = None
        self._looked_for_socket = url.scheme in ("unix", "rediss", "memory")
        self._offset_ms: float | None = None
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._run = b""
        self.clock_error_ms = 0.0

    def channel(self, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Channel:
        """Return a new channel; it connects when it is first used."""
        if self.url.scheme == "memory":
            from agentlace.transport.memory import MemoryChannel

            return MemoryChannel(self, connect_timeout_s)
        channel = Channel(self, connect_timeout_s)
        with self._lock:
            self._channels.add(channel)
        return channel

    def meet(self, channel: Channel, seen_s: float) -> None:
        """Look whether the server at the other end of a new connection is still the same one.

        If it was started anew, channels are interrupted that wait for the process that is gone.
        (The copy of itself that a server makes to rewrite its log keeps the connections of a
        killed one open.)

        Args:
            channel: the new connection.
            seen_s: when the server met before was last heard of, in monotonic time: channels
                that have connected since then are taken for connected to the new one.
        """
        try:
            run = _run_of(channel.call("INFO", "server"))
        except (BrokerAuthFailed, Refused):
            return
        before, self._run = self._run, run
        if not before or before == run:
            return
        with self._lock:
            channels = list(self._channels)
        for other in channels:
            if other.is_connected and other.connected_s <= seen_s:
                other.interrupt()

    def now_ms(self) -> float:
        """Return the broker's time in milliseconds since the epoch, as measured from here.

        It is at most :attr:`clock_error_ms` off, plus the drift since :meth:`measure_clock`.
        """
        offset_ms = self._offset_ms
        if offset_ms is None:
            return self.at_ms(time.monotonic())
        return time.monotonic() * 1000 + offset_ms

    def at_ms(self, moment_s: float) -> float:
        """Return the broker's time, likewise, at a moment of this machine's monotonic clock."""
        if self._offset_ms is None:
            with contextlib.closing(self.channel()) as channel:
                self.measure_clock(channel)
        assert self._offset_ms is not None
        return moment_s * 1000 + self._offset_ms

    def measure_clock(self, channel: Channel, samples: int = 5) -> None:
        """Measure the broker's clock; the sample with the shortest round trip counts."""
        measured = []
        for _ in range(samples):
            before = time.monotonic() * 1000
            seconds, micros = channel.call("TIME")
            after = time.monotonic() * 1000
            middle = (before + after) / 2
            measured.append((after - before, int(seconds) * 1000 + int(micros) / 1000 - middle))
        round_trip_ms, self._offset_ms = min(measured)
        self.clock_error_ms = round_trip_ms / 2

    def open(self, timeout_s: float) -> Link:
        """Return a new connection, over the broker's Unix socket if it is on this machine.

        Raises:
            AgentlaceError: there is none; no other error comes out.
        """
        try:
            connection = self._connected(timeout_s)
            try:
                return _linked(connection)
            except BaseException:
                connection.disconnect()
                raise
        except Exception as error:
            raise self.mapped(error) from error

    def mapped(self, error: Exception) -> AgentlaceError:
        """Return the agentlace error for one that came up while talking to this broker."""
        return mapped(error, self.url)

    def _connected(self, timeout_s: float) -> Connection:
        with self._lock:
            path = self._socket_path
        if path:
            with contextlib.suppress(redis.RedisError, OSError):
                return self._connect(path, timeout_s)
            with self._lock:  # it may have been started anew elsewhere: look again
                self._socket_path, self._looked_for_socket = None, False
        connection = self._connect(None, timeout_s)
        if not self._looked_for_socket:
            self._looked_for_socket = True
            return self._moved_to_socket(connection, timeout_s)
        return connection

    def _connect(self, path: str | None, timeout_s: float) -> Connection:
        url = self.url
        kwargs: dict[str, Any] = dict(
            db=url.db,
            username=url.username,
            password=url.password,
            protocol=2,
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            client_name="agentlace",
        )
        connection: Connection
        if path or url.scheme == "unix":
            connection = _redis.UnixDomainSocketConnection(path=path or url.path, **kwargs)
        else:
            tls = url.scheme == "rediss"
            kind = _redis.SSLConnection if tls else _redis.Connection
            kwargs.update(url.options if tls else ())
            connection = kind(
                host=url.host, port=url.port, socket_connect_timeout=timeout_s, **kwargs
            )
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _moved_to_socket(self, connection: Connection, timeout_s: float) -> Connection:
        """Return a connection over the Unix socket of the very same server, if there is one.

        It halves the latency. That it is the same server is told by its run ID, since a path
        may also belong to another machine's or container's server.
        """
        candidate, other = None, connection
        try:
            path = _told_socket_path(connection)
            candidate = self._connect(path, timeout_s) if path else None
            if candidate and _run_id(candidate) == _run_id(connection):
                with self._lock:
                    self._socket_path = path
                candidate, other = other, candidate
        except (redis.RedisError, OSError):
            connection.connect()  # if it was lost by asking
        finally:
            if candidate:
                candidate.disconnect()
        return other


def _linked(connection: Connection) -> Link:
    """Return a connection's link, with large buffers where the kernel gives them for nothing."""
    sock = connection._sock
    if sock.family == getattr(socket, "AF_UNIX", None):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    return Link(sock, ReplyReader(sock), _client_id(connection), connection.disconnect)


def _told_socket_path(connection: Connection) -> str:
    """Return the Unix socket that the server has, if it is on this machine and says so."""
    sock = connection._sock
    if sock.getsockname()[0] != sock.getpeername()[0]:
        return ""
    connection.send_command("CONFIG", "GET", "unixsocket")
    answer = connection.read_response()
    return answer[1].decode() if len(answer) == 2 else ""


def _run_id(connection: Connection) -> bytes:
    connection.send_command("INFO", "server")
    return _run_of(connection.read_response())


def _run_of(info: Any) -> bytes:
    """Return what tells one run of a server from the next."""
    lines = bytes(info).splitlines()
    return next((line for line in lines if line.startswith(b"run_id:")), b"")


def _client_id(connection: Connection) -> int | None:
    """Return the connection's number at the server, None if this user may not ask."""
    connection.send_command("CLIENT", "ID")
    try:
        return int(connection.read_response())
    except redis.ResponseError:
        return None
