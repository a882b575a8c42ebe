"""Connections to the broker; the only module that knows redis-py.

A :class:`Broker` is an address and what was learned about it (its clock, Unix socket, servers).
redis-py opens its connections, and every error of redis-py or the socket comes out as one of
:mod:`agentlace.errors`. What is said on a connection is a :class:`Channel`'s business.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, BrokerAuthFailed, BrokerUnreachable
from agentlace.transport.channel import CONNECT_TIMEOUT_S, MARGIN_S, Channel
from agentlace.transport.clock import Clock
from agentlace.transport.cluster_channel import ClusterChannel
from agentlace.transport.discovery import Cluster, Sentinels
from agentlace.transport.encounters import Encounters
from agentlace.transport.link import Address, Link
from agentlace.transport.refusals import Passing, Refused, mapped_refusal
from agentlace.transport.resp import ErrorReply, ReplyReader
from agentlace.transport.tls import Terms, failure

__all__ = ["CONNECT_TIMEOUT_S", "MARGIN_S", "Broker", "Channel", "Passing", "Refused", "mapped"]

SOCKET_BUFFER_BYTES = 4 << 20
UNIX_SOCKET = 0
"""The port of an address that is a path."""

Connection = Any
"""A redis-py connection; its classes are only partly typed."""
_redis: Any = redis
_AUTH_ERRORS = (
    redis.AuthenticationError,
    redis.exceptions.AuthenticationWrongNumberOfArgsError,
    redis.exceptions.AuthorizationError,
)
_RETRY_ERRORS = (
    redis.BusyLoadingError,
    redis.ReadOnlyError,
    redis.exceptions.ClusterError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
)


def mapped(error: Exception, url: BrokerURL) -> AgentlaceError:
    """Return the agentlace error for one of redis-py, of the socket, or of the server."""
    if isinstance(error, AgentlaceError):
        return error
    text = str(error) or type(error).__name__
    if url.has_tls and (trouble := failure(error, url)):
        return trouble
    if isinstance(error, ErrorReply):
        return mapped_refusal(error.code, text, url, error.command)
    if isinstance(error, redis.exceptions.NoPermissionError):
        return mapped_refusal("NOPERM", text, url)
    if isinstance(error, _AUTH_ERRORS):
        return BrokerAuthFailed(str(url), text)
    if isinstance(error, redis.OutOfMemoryError):
        return mapped_refusal("OOM", text, url)
    if isinstance(error, _RETRY_ERRORS):
        return Passing(str(url), text, hint="")
    if isinstance(error, redis.ResponseError):
        return Refused(text.split(" ", 1)[0], text)
    return BrokerUnreachable(str(url), text, "" if url.has_replicas else BrokerUnreachable.HINT)


class Broker:
    """An address, and what was learned about the broker there.

    Args:
        url: the address.
        home: a key, of the node of a cluster whose clock counts.
    """

    def __init__(self, url: BrokerURL, home: str = "") -> None:
        self.url = url
        self._home = home
        self._lock = threading.Lock()
        self._socket_path: str | None = None
        self._looked_for_socket = url.scheme != "redis"
        self._servers: Cluster | Sentinels | None = None
        if url.is_cluster:
            self._servers = Cluster(url, self._link_to, self.mapped)
        elif url.has_sentinels:
            ask = partial(self._link_to, sentinel=True)
            self._servers = Sentinels(url, self._link_to, ask, self.mapped)
        self._tls = Terms(url)
        self._clock = Clock()
        self._encounters = Encounters()

    def channel(self, connect_timeout_s: float = CONNECT_TIMEOUT_S, key: str = "") -> Channel:
        """Return a new channel; it connects when it is first used.

        Args:
            connect_timeout_s: how long an attempt to connect may take.
            key: a key of those that it is for, all of one hash tag. Without one it serves every
                key, but in a cluster most of them by way of another node.
        """
        if self.url.scheme == "memory":
            from agentlace.transport.memory import MemoryChannel

            return MemoryChannel(self, connect_timeout_s)
        if self.url.is_cluster:
            channel: Channel = ClusterChannel(self, connect_timeout_s, key)
        else:
            channel = Channel(self, connect_timeout_s)
        self._encounters.add(channel)
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
        self._encounters.note(channel, run, seen_s)

    def now_ms(self) -> float:
        """Return the broker's time in milliseconds since the epoch, as measured from here.

        It is at most :attr:`clock_error_ms` off, plus the drift since :meth:`measure_clock`. Of
        a cluster it is the time of the node that has the key ``home``.
        """
        clock = self._clock
        return clock.at_ms(time.monotonic()) if clock.is_measured else self.at_ms(time.monotonic())

    def at_ms(self, moment_s: float) -> float:
        """Return the broker's time, likewise, at a moment of this machine's monotonic clock."""
        clock = self._clock
        if not clock.is_measured:
            with contextlib.closing(self.channel(key=self._home)) as channel:
                clock.measure(channel)
        return clock.at_ms(moment_s)

    @property
    def clock_error_ms(self) -> float:
        """How far off :meth:`now_ms` may be; 0 before the clock was measured."""
        return self._clock.error_ms

    def measure_clock(self, channel: Channel) -> None:
        """Measure the clock of the server at the channel's other end."""
        self._clock.measure(channel)

    def follow_clock(self, channel: Channel) -> bool:
        """Measure the clock if the channel leads to another server now; whether it does."""
        return self._clock.follow(channel)

    def open(self, timeout_s: float, key: str = "", at: Address | None = None) -> Link:
        """Return a new connection, over the broker's Unix socket if it is on this machine.

        Args:
            timeout_s: how long each step of it may take.
            key: of a cluster's nodes, the one that has this key.
            at: of several servers, this one.

        Raises:
            AgentlaceError: there is none; no other error comes out.
        """
        if self._servers is not None:
            return self._link_to(at, timeout_s) if at else self._servers.open(key, timeout_s)
        try:
            return _linked(self._connected(timeout_s))
        except Exception as error:
            is_silent = isinstance(error, redis.TimeoutError)
            raise self._tls.explained(self.mapped(error), error, is_silent) from error

    def doubt(self) -> None:
        """Take note that keys may have moved to other servers."""
        if isinstance(self._servers, Cluster):
            self._servers.doubt()

    def _link_to(self, server: Address, timeout_s: float, sentinel: bool = False) -> Link:
        try:
            return _linked(self._connect(server, timeout_s, sentinel))
        except Exception as error:
            raise self.mapped(error) from error

    def mapped(self, error: Exception) -> AgentlaceError:
        """Return the agentlace error for one that came up while talking to this broker."""
        return mapped(error, self.url)

    def _connected(self, timeout_s: float) -> Connection:
        url = self.url
        with self._lock:
            path = self._socket_path
        if path:
            with contextlib.suppress(redis.RedisError, OSError):
                return self._connect((path, UNIX_SOCKET), timeout_s)
            with self._lock:  # it may have been started anew elsewhere: look again
                self._socket_path, self._looked_for_socket = None, False
        server = (url.path, UNIX_SOCKET) if url.scheme == "unix" else (url.host, url.port)
        connection = self._connect(server, timeout_s)
        self._tls.have_worked = True
        if not self._looked_for_socket:
            self._looked_for_socket = True
            return self._moved_to_socket(connection, timeout_s)
        return connection

    def _connect(self, server: Address, timeout_s: float, sentinel: bool = False) -> Connection:
        url, (host, port) = self.url, server
        kwargs: dict[str, Any] = dict(
            db=0 if sentinel else url.db,
            username=url.sentinel_username if sentinel else url.username,
            password=url.sentinel_password if sentinel else url.password,
            protocol=2,
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        connection: Connection
        if port == UNIX_SOCKET:
            connection = _redis.UnixDomainSocketConnection(path=host, **kwargs)
        else:
            kind = _redis.SSLConnection if url.has_tls else _redis.Connection
            kwargs.update(self._tls.settings)
            connection = kind(host=host, port=port, socket_connect_timeout=timeout_s, **kwargs)
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
            candidate = self._connect((path, UNIX_SOCKET), timeout_s) if path else None
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
    try:
        sock, server = connection._sock, (getattr(connection, "path", ""), UNIX_SOCKET)
        if sock.family == getattr(socket, "AF_UNIX", None):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        else:
            server = (connection.host, connection.port)
        client_id = _introduced(connection)
        return Link(sock, ReplyReader(sock), client_id, connection.disconnect, server)
    except BaseException:
        connection.disconnect()
        raise


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
    return next((line for line in bytes(info).splitlines() if line[:7] == b"run_id:"), b"")


def _introduced(connection: Connection) -> int | None:
    """Give the connection its name in CLIENT LIST, and return its number there.

    A user who may do neither is as welcome: its number is None.
    """
    number = None
    for command in (("SETNAME", "agentlace"), ("ID",)):
        connection.send_command("CLIENT", *command)
        try:
            number = connection.read_response()
        except redis.ResponseError:
            number = None
    return number if isinstance(number, int) else None
