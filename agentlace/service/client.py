"""A service's calling end."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from agentlace._version import __version__
from agentlace.config import BrokerURL, check_same, described
from agentlace.errors import (
    AgentlaceError,
    BrokerUnreachable,
    Busy,
    Closed,
    ConfigMismatch,
    PeerAbsent,
    RateLimited,
    RemoteError,
    RequestTimeout,
    StoreFull,
    Superseded,
)
from agentlace.forks import check_process, process_number
from agentlace.logs import Refrain, about
from agentlace.service.measured import Measured
from agentlace.service.running import started, stopped
from agentlace.service.server import AnyConfig
from agentlace.telemetry import Sample, Telemetry
from agentlace.transport import presence
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.identity import describe
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.requests import RequestClient
from agentlace.waits import Trying, Wait

CONNECT_TIMEOUT_S = 5.0
"""How long a client looks for its broker and server; independent of ``timeout_ms``."""
WAIT_POLL_S = 0.1
WAIT_LOG_S = 5.0

T = TypeVar("T")

SOFT_ERRORS = (
    BrokerUnreachable,
    Busy,
    Closed,
    PeerAbsent,
    RateLimited,
    RemoteError,
    RequestTimeout,
    StoreFull,
    Superseded,
)
"""Errors that give None or False, logged and kept in ``last_error``, unless ``strict``."""


class Client(Measured):
    """A service's calling end. A context manager.

    Thread-safe: calls of several threads are made one after the other.

    Attributes:
        last_error: why the last call gave None or False; None after a success.
        timeout_ms: deadline of one request, in milliseconds.
        telemetry: what this node says of itself, beside who it is.
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
        self._broker = Broker(self._url, self._keys.prefix)
        self._server: presence.Info | None = None
        self._made_in = process_number()
        self._log = logging.getLogger(f"agentlace.{kind}")
        self._stopping = threading.Event()
        self._refrain = Refrain()
        self._mismatch: ConfigMismatch | None = None
        self._requests = RequestClient(self._broker, self._keys, self._server_token)
        name = name or uuid.uuid4().hex[:12]
        self.telemetry = Telemetry(self._role(kind), self._keys.name, name)
        self.telemetry.collect(self._measure)
        self.telemetry.explain(self._waits)
        self._absence = Trying()
        info = describe("client", name, version=__version__, config=self._description)
        self._presence = presence.Presence(
            *(self._broker, self._keys.client(name), info),
            on_beat=self._on_beat,
            telemetry=self.telemetry,
        )
        self.server_ip = server_ip
        self.timeout_ms = timeout_ms
        self.strict = os.environ.get("AGENTLACE_STRICT") == "1" if strict is None else strict
        self.last_error: AgentlaceError | None = None

    def _role(self, kind: str) -> str:
        return f"client of {kind}"

    def _measure(self) -> Iterator[Sample]:
        """Yield this client's numbers."""
        yield Sample("requests_made_total", self._requests.made)
        yield Sample("requests_failed_total", self._requests.failed)
        yield Sample("reconnects_total", self._presence.reconnects)

    def _waits(self) -> Iterator[Wait]:
        """Yield what this client waits for."""
        yield from self._absence.waits()
        yield from self._requests.unanswered.waits()
        if self._mismatch is not None:
            yield Wait(f"a server of its config: {self._mismatch}")

    def _note_server(self) -> None:
        if self._server is None:
            self._absence.failed(f"server {self._keys.name}, which is not there")
        else:
            self._absence.succeeded()

    def _connect(self, wait_for_server: bool) -> None:
        """Wait for broker and server, compare configs, and announce this client.

        Raises:
            BrokerUnreachable, PeerAbsent: not there within CONNECT_TIMEOUT_S, unless waiting;
                meanwhile it is announced as one that waits.
            BrokerAuthFailed: the broker refuses the user or password.
            ConfigMismatch: the server was built with another config.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        next_log = time.monotonic() + 1.0
        with contextlib.closing(
            self._broker.channel(CONNECT_TIMEOUT_S, self._keys.prefix)
        ) as channel:
            while True:
                error = self._look_for_server(channel)
                if error is None:
                    break
                if not wait_for_server and time.monotonic() > deadline:
                    raise error
                if time.monotonic() > next_log:
                    self._log.warning("waiting: %s", error, extra=self._about(error))
                    next_log = time.monotonic() + WAIT_LOG_S
                    self._announce(isinstance(error, PeerAbsent))
                self._stopping.wait(WAIT_POLL_S)
        self._announce(True)
        started(self)

    def _announce(self, has_broker: bool) -> None:
        """Announce this client, if it is not announced yet."""
        if has_broker and not self._presence.is_running:
            self._presence.acquire(exclusive=False)
            self._presence.start()

    def _look_for_server(self, channel: Channel) -> AgentlaceError | None:
        try:
            self._server = presence.read_peer(channel, self._keys.server)
            self._note_server()
            if self._server is None:
                return presence.absent(channel, self._keys)
        except BrokerUnreachable as error:
            return error
        check_same(self._description, self._server.get("config", {}))
        return None

    def _server_token(self) -> str | None:
        return None if self._server is None else str(self._server["token"])

    def _on_beat(self, channel: Channel) -> None:
        """Look after the server: it may have been restarted, and with another config."""
        before, self._server = self._server, presence.read_peer(channel, self._keys.server)
        self._note_server()
        if self._server is not None and (
            before is None or before["token"] != self._server["token"]
        ):
            self._mismatch = self._mismatch_with(self._server)
        if before is not None and self._server is None:
            self._log.warning("server %s is gone", self._keys.name, extra=self._about())
        elif before is None and self._server is not None:
            self._log.warning("server %s is there", self._keys.name, extra=self._about())

    def _mismatch_with(self, server: presence.Info) -> ConfigMismatch | None:
        try:
            check_same(self._description, server.get("config", {}))
        except ConfigMismatch as error:
            text = "server %s was restarted: %s"
            self._log.error(text, self._keys.name, error, extra=self._about(error))
            return error
        return None

    def _check_usable(self) -> None:
        """Raise what forbids the use of this client.

        Raises:
            Closed: it was stopped, or made by the parent of this process.
            ConfigMismatch: the server was restarted with another config.
        """
        if self._made_in != process_number():
            check_process(self._made_in, f"this client of {self._keys.name}")
        if self._stopping.is_set():
            raise Closed(f"this client of {self._keys.name} was stopped")
        if self._mismatch is not None:
            raise self._mismatch.with_traceback(None)

    def _warn(self, text: str, error: AgentlaceError) -> None:
        """Log why a call gave None or False, but not with every call of a control loop."""
        write = self._log.warning
        self._refrain.say(write, error, "%s%s", text, error, extra=self._about(error))

    def _about(self, error: AgentlaceError | None = None) -> dict[str, Any]:
        return about(self._keys.labels, error=error)

    def _softly(self, call: Callable[..., T], *args: Any) -> T | None:
        """Return the call's result; None for one of SOFT_ERRORS, unless strict."""
        try:
            self._check_usable()
            result = call(*args)
        except SOFT_ERRORS as error:
            self.last_error = self._explained(error)
            if self.strict:
                raise self.last_error from error
            self._warn("", self.last_error)
            return None
        self.last_error = None
        self._refrain.reset()
        return result

    def _explained(self, error: AgentlaceError) -> AgentlaceError:
        """Say that the server is absent, if that is why a request timed out."""
        if not isinstance(error, RequestTimeout) or error.started is not False:
            return error
        try:
            with contextlib.closing(self._broker.channel(1.0, self._keys.prefix)) as channel:
                if presence.read_peer(channel, self._keys.server) is None:
                    return presence.absent(channel, self._keys)
        except AgentlaceError:
            pass
        return error

    @property
    def _is_inherited(self) -> bool:
        """Whether it was made by the parent of this process: then there is nothing to stop."""
        return self._made_in != process_number()

    def stop(self) -> None:
        """Stop and say goodbye. Idempotent; a call that is waiting ends with Closed."""
        if self._is_inherited:
            return
        self._stopping.set()
        stopped(self)
        self._requests.close()
        self._presence.stop()

    def __enter__(self: T) -> T:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
