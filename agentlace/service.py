"""What all servers have in common, and all clients: connecting, presence, an orderly end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from agentlace._version import __version__
from agentlace.config import (
    ActionConfig,
    BrokerURL,
    InferenceConfig,
    TrainerConfig,
    check_same,
    described,
)
from agentlace.errors import (
    AgentlaceError,
    BrokerUnreachable,
    Closed,
    PeerAbsent,
    RateLimited,
    RemoteError,
    RequestTimeout,
    StoreFull,
)
from agentlace.transport import embedded, presence
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.requests import RequestClient, RequestServer

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
"""How long a client looks for its broker and server; independent of ``timeout_ms``."""
WAIT_POLL_S = 0.1
WAIT_LOG_S = 5.0

T = TypeVar("T")
AnyConfig = ActionConfig | TrainerConfig | InferenceConfig

SOFT_ERRORS = (
    BrokerUnreachable,
    Closed,
    PeerAbsent,
    RateLimited,
    RemoteError,
    RequestTimeout,
    StoreFull,
)
"""Errors that give None or False, logged and kept in ``last_error``, unless ``strict``."""

_running: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _say_goodbye() -> None:
    """Stop what a program left running, so that its peers need not wait to notice."""
    for node in list(_running):
        with contextlib.suppress(Exception):
            node.stop()


class Server:
    """A service's serving end. It may be started again after ``stop``. A context manager.

    Threads: requests are handled one after the other, in the caller's thread or in one of the
    server's own; a heartbeat keeps the presence key. ``start`` and ``stop`` may be called from
    any thread.
    """

    exclusive = True

    def __init__(
        self, kind: str, config: AnyConfig, broker: str | BrokerURL | None, log_level: int
    ) -> None:
        logging.getLogger(f"agentlace.{kind}").setLevel(log_level)
        self._url = BrokerURL.resolve(broker)
        self._keys = ServiceKeys(self._url.namespace, kind, config.port_number)
        self._description = described(config)
        self._life = threading.RLock()
        self._broker: Broker | None = None
        self._presence: presence.Presence | None = None
        self._requests: RequestServer | None = None

    @property
    def is_running(self) -> bool:
        """Whether the server was started and not stopped since."""
        return self._presence is not None

    def _connected(self) -> Broker:
        """Return the broker, starting the embedded one on this machine if none is there."""
        with self._life:
            if self._broker is None:
                if self._url.scheme != "memory":
                    embedded.ensure(self._url)
                self._broker = Broker(self._url)
                self._broker.now_ms()
            return self._broker

    def start(self, threaded: bool = False) -> None:
        """Start to serve: in this thread, until ``stop``, or in threads of the server's own.

        Blocks until the service is announced, which takes up to five seconds if a server that
        was killed on another machine still holds its lease.

        Args:
            threaded: whether to return while the server runs.

        Raises:
            BrokerUnreachable: no broker, and none could be started here.
            BrokerAuthFailed: the broker refuses the user or password.
            AlreadyServed: another live server has this identity.
        """
        with self._life:
            if self.is_running:
                raise AgentlaceError(f"{self._keys.name} is running already")
            broker = self._connected()
            info = presence.describe(
                "server",
                self._keys.name,
                version=__version__,
                config=self._description,
                exclusive=self.exclusive,
                **self._offers(),
            )
            life = presence.Presence(
                broker, self._keys.server, info, self._keys.seen, self._on_beat, self._halt
            )
            life.acquire(self.exclusive)
            self._presence = life
            self._requests = RequestServer(broker, self._keys, self._handle, info["token"])
            self._start_workers(broker)
            life.start()
            _running.add(self)
        if threaded:
            self._requests.start()
            return
        try:
            self._requests.run()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop serving and say goodbye. Idempotent; blocks for at most a few seconds.

        In order: no more requests are taken, the running one is answered; workers end; the
        presence key is removed.
        """
        with self._life:
            life, self._presence = self._presence, None
            if life is not None:
                _running.discard(self)
                self._halt()
                life.stop()
            self._broker = None

    def _halt(self) -> None:
        """End all work; also called when another server has taken over."""
        if self._requests is not None:
            self._requests.stop()
        self._stop_workers()

    def _offers(self) -> dict[str, Any]:
        """Return what clients should know beside the config."""
        return {}

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        raise NotImplementedError

    def _start_workers(self, broker: Broker) -> None:
        """Start what runs beside the requests."""

    def _stop_workers(self) -> None:
        """Stop what runs beside the requests; called at least once."""

    def _on_beat(self, channel: Channel) -> None:
        """Do a heartbeat's further work."""

    def __enter__(self: T) -> T:
        """Return the server; starting it is the caller's choice."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


class Client:
    """A service's calling end. A context manager.

    Thread-safe: calls of several threads are made one after the other.

    Attributes:
        last_error: why the last call gave None or False; None after a success.
        timeout_ms: deadline of one request, in milliseconds.
    """

    def __init__(
        self,
        kind: str,
        server_ip: str,
        config: AnyConfig,
        broker: str | BrokerURL | None,
        timeout_ms: float,
        strict: bool | None,
        name: str | None = None,
    ) -> None:
        self._url = BrokerURL.resolve(broker, server_ip)
        self._keys = ServiceKeys(self._url.namespace, kind, config.port_number)
        self._description = described(config)
        self._broker = Broker(self._url)
        self._server: presence.Info | None = None
        self._log = logging.getLogger(f"agentlace.{kind}")
        self._stopping = threading.Event()
        self._requests = RequestClient(self._broker, self._keys, self._server_token)
        name = name or uuid.uuid4().hex[:12]
        info = presence.describe("client", name, version=__version__, config=self._description)
        self._presence = presence.Presence(
            self._broker, self._keys.client(name), info, on_beat=self._on_beat
        )
        self.server_ip = server_ip
        self.timeout_ms = timeout_ms
        self.strict = os.environ.get("AGENTLACE_STRICT") == "1" if strict is None else strict
        self.last_error: AgentlaceError | None = None

    def _connect(self, wait_for_server: bool) -> None:
        """Wait for broker and server, compare configs, and announce this client.

        Raises:
            BrokerUnreachable, PeerAbsent: not there within CONNECT_TIMEOUT_S, unless waiting.
            BrokerAuthFailed: the broker refuses the user or password.
            ConfigMismatch: the server was built with another config.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        next_log = time.monotonic() + 1.0
        with contextlib.closing(self._broker.channel(CONNECT_TIMEOUT_S)) as channel:
            while True:
                error = self._look_for_server(channel)
                if error is None:
                    break
                if not wait_for_server and time.monotonic() > deadline:
                    raise error
                if time.monotonic() > next_log:
                    self._log.warning("waiting: %s", error)
                    next_log = time.monotonic() + WAIT_LOG_S
                self._stopping.wait(WAIT_POLL_S)
        self._presence.acquire(exclusive=False)
        self._presence.start()
        _running.add(self)

    def _look_for_server(self, channel: Channel) -> AgentlaceError | None:
        try:
            self._server = presence.read_peer(channel, self._keys.server)
            if self._server is None:
                return presence.absent(channel, self._keys)
        except BrokerUnreachable as error:
            return error
        check_same(self._description, self._server["config"])
        return None

    def _server_token(self) -> str | None:
        return None if self._server is None else str(self._server["token"])

    def _on_beat(self, channel: Channel) -> None:
        """Look after the server: it may have been restarted."""
        before, self._server = self._server, presence.read_peer(channel, self._keys.server)
        if before is not None and self._server is None:
            self._log.warning("server %s is gone", self._keys.name)
        elif before is None and self._server is not None:
            self._log.warning("server %s is there", self._keys.name)

    def _softly(self, call: Callable[[], T]) -> T | None:
        """Return the call's result; None for one of SOFT_ERRORS, unless strict."""
        try:
            if self._stopping.is_set():
                raise Closed(f"this client of {self._keys.name} was stopped")
            result = call()
        except SOFT_ERRORS as error:
            self.last_error = self._explained(error)
            if self.strict:
                raise self.last_error from error
            self._log.warning("%s", self.last_error)
            return None
        self.last_error = None
        return result

    def _explained(self, error: AgentlaceError) -> AgentlaceError:
        """Say that the server is absent, if that is why a request timed out."""
        if not isinstance(error, RequestTimeout) or error.started is not False:
            return error
        try:
            with contextlib.closing(self._broker.channel(1.0)) as channel:
                if presence.read_peer(channel, self._keys.server) is None:
                    return presence.absent(channel, self._keys)
        except AgentlaceError:
            pass
        return error

    def stop(self) -> None:
        """Stop and say goodbye. Idempotent; a call that is waiting ends with Closed."""
        self._stopping.set()
        _running.discard(self)
        self._requests.close()
        self._presence.stop()

    def __enter__(self: T) -> T:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
