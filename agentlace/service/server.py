"""A service's serving end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from agentlace._version import __version__
from agentlace.config import ActionConfig, BrokerURL, InferenceConfig, TrainerConfig, described
from agentlace.errors import AgentlaceError, AlreadyServed, Closed
from agentlace.forks import check_process, process_number
from agentlace.service.measured import Measured
from agentlace.service.running import started, stopped
from agentlace.telemetry import Sample, Telemetry
from agentlace.transport import embedded, presence
from agentlace.transport.connection import Broker, Channel
from agentlace.transport.identity import describe
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.requests import RequestServer

T = TypeVar("T")
AnyConfig = ActionConfig | TrainerConfig | InferenceConfig


class Server(Measured):
    """A service's serving end. It may be started again after ``stop``. A context manager.

    Threads: requests are handled one after the other, in the caller's thread or in one of the
    server's own; a heartbeat keeps the presence key. ``start`` and ``stop`` may be called from
    any thread.

    Attributes:
        telemetry: what this node says of itself, beside who it is.
    """

    exclusive = True

    def __init__(
        self, kind: str, config: AnyConfig, broker: str | BrokerURL | None, log_level: int
    ) -> None:
        logging.getLogger(f"agentlace.{kind}").setLevel(log_level)
        self._url = BrokerURL.resolve(broker)
        self._keys = ServiceKeys(self._url.namespace, kind, config.port_number)
        self._description = described(config)
        self._made_in = process_number()
        self._life = threading.RLock()
        self._ended: AgentlaceError | None = None
        self._broker: Broker | None = None
        self._presence: presence.Presence | None = None
        self._requests: RequestServer | None = None
        self.telemetry = Telemetry(kind, self._keys.name, self._keys.name)
        self.telemetry.collect(self._measure)

    @property
    def is_running(self) -> bool:
        """Whether the server was started and not stopped since."""
        return self._presence is not None

    def _check_not_ended(self) -> None:
        """Raise what ended the server, if it was not started since."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)

    def _check_process(self) -> None:
        """Raise Closed in a child of the process that made this server."""
        check_process(self._made_in, f"this server of {self._keys.name}")

    @property
    def _is_inherited(self) -> bool:
        """Whether it was made by the parent of this process: then there is nothing to stop."""
        return self._made_in != process_number()

    def _connected(self) -> Broker:
        """Return the broker, starting the embedded one on this machine if none is there.

        Raises:
            Closed, AlreadyServed: the server was stopped or replaced, and not started since.
        """
        self._check_process()
        self._check_not_ended()
        with self._life:
            if self._broker is None:
                if self._url.scheme != "memory":
                    embedded.ensure(self._url)
                self._broker = Broker(self._url, self._keys.prefix)
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
            Closed: in a child (fork) of the process that made this server.
        """
        self._check_process()
        with self._life:
            if self.is_running:
                raise AgentlaceError(f"{self._keys.name} is running already")
            self._ended = None
            try:
                requests = self._serve(self._connected())
            except BaseException:
                self.stop()
                raise
        if threaded:
            requests.start()
            return
        try:
            requests.run()
        finally:
            self.stop()

    def _serve(self, broker: Broker) -> RequestServer:
        """Announce the service and start what runs beside its requests."""
        info = describe(
            "server",
            self._keys.name,
            version=__version__,
            config=self._description,
            exclusive=self.exclusive,
            **self._offers(),
        )
        life = self._presence_of(broker, info)
        try:
            life.acquire(self.exclusive)
        except BaseException:
            life.stop()
            raise
        self._presence = life
        self._requests = self._requests_of(broker, info["token"])
        self._start_workers(broker)
        life.start()
        started(self)
        return self._requests

    def _presence_of(self, broker: Broker, info: presence.Info) -> presence.Presence:
        """Return what announces the server and keeps its lease."""
        return presence.Presence(
            *(broker, self._keys.server, info, self._keys.seen),
            *(self._on_beat, self._on_replaced, self.telemetry),
        )

    def _requests_of(self, broker: Broker, token: str) -> RequestServer:
        """Return what takes requests and answers them."""
        return RequestServer(broker, self._keys, self._handle, token)

    def stop(self) -> None:
        """Stop serving and say goodbye. Idempotent; blocks for at most a few seconds.

        In order: no more requests are taken, the running one is answered; workers end; the
        presence key is removed. In a child (fork) of the process that made it: nothing.
        """
        if self._is_inherited:
            return
        if self._ended is None:  # before the lock: a callback that publishes now must not wait
            self._ended = Closed(f"{self._keys.name} was stopped")
        with self._life:
            life, self._presence = self._presence, None
            stopped(self)
            try:
                self._halt()
            finally:
                if life is not None:
                    life.stop()
            self._broker = None

    def _on_replaced(self, error: AlreadyServed) -> None:
        """End all work, since another server has taken over."""
        self._ended = error
        self._halt()

    def _halt(self) -> None:
        """End all work; called at least once."""
        if self._requests is not None:
            self._requests.stop()
        self._stop_workers()

    def _measure(self) -> Iterator[Sample]:
        """Yield this server's numbers."""
        requests, life = self._requests, self._presence
        if requests is not None:
            yield Sample("requests_answered_total", requests.answered)
            yield Sample("requests_expired_total", requests.expired)
            yield Sample("requests_unreadable_total", requests.unreadable)
        if life is not None:
            yield Sample("reconnects_total", life.reconnects)

    def _offers(self) -> dict[str, Any]:
        """Return what clients should know beside the config."""
        return {}

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        raise NotImplementedError

    def _start_workers(self, broker: Broker) -> None:
        """Start what runs beside the requests."""

    def _stop_workers(self) -> None:
        """Stop what runs beside the requests, started or not."""

    def _on_beat(self, channel: Channel) -> None:
        """Do a heartbeat's further work."""

    def __enter__(self: T) -> T:
        """Return the server; starting it is the caller's choice."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
