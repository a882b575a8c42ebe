"""Runs the dashboard's web server."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from types import FrameType

import uvicorn

from agentlace.addresses import is_loopback
from agentlace.config import BadSetting, BrokerURL, address_of
from agentlace.dashboard.app import Dashboard
from agentlace.dashboard.auth import Passwords
from agentlace.dashboard.cameras import Cameras
from agentlace.dashboard.desk import Desk
from agentlace.dashboard.feed import Feed

GOODBYE_S = 1
"""So long open pages are given when the server ends."""
BACKLOG = 128


@dataclass(frozen=True)
class Settings:
    """How the dashboard runs.

    Attributes:
        broker: the broker, as a user that may read everything.
        operator: the same broker, as a user that may command trainers.
        host: address to bind.
        port: to bind; any free one if 0.
        passwords: of viewers and admins.
        hosts: further names under which the page may be reached.
    """

    broker: BrokerURL
    operator: BrokerURL
    host: str = "127.0.0.1"
    port: int = 8080
    passwords: Passwords = field(default_factory=Passwords)
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse to show everything to everybody."""
        if not is_loopback(self.host) and self.passwords.viewer is None:
            problem = (
                "refused without a password, as whoever reaches the port would see everything: "
                "write one into a file and pass --password-file FILE, or set "
                "AGENTLACE_DASHBOARD_PASSWORD_FILE"
            )
            raise BadSetting("--host", self.host, problem)


class WebServer:
    """The web server and what it shows.

    Args:
        settings: how it runs.

    Raises:
        BadSetting: the address cannot be bound.
    """

    def __init__(self, settings: Settings) -> None:
        self._socket = _bound(settings.host, settings.port)
        self._settings = settings
        self.feed = Feed(settings.broker)
        cameras, desk = Cameras(settings.broker), Desk(settings.operator)
        self._cameras = cameras
        dashboard = Dashboard(self.feed, cameras, desk, settings.passwords, settings.hosts)
        # No access log: what is asked for is not worth a line a second.
        config = uvicorn.Config(
            dashboard.application(),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=GOODBYE_S,
        )
        self._server = _Server(config, self.feed)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host, port = self._socket.getsockname()[:2]
        is_any = ipaddress.ip_address(host).is_unspecified
        return f"http://{address_of('localhost' if is_any else host, port)}/"

    @property
    def is_started(self) -> bool:
        """Whether requests are answered."""
        return self._server.started

    def run(self) -> None:
        """Serve until Ctrl-C, SIGTERM, or :meth:`end`."""
        self.feed.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.feed.stop()
            self._cameras.close()
            self._socket.close()

    def end(self) -> None:
        """Have :meth:`run` return, from any thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Ends the pages' streams first, which would otherwise stay open for ever."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, at once if it is asked for twice; the signal is not raised once more afterwards."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"cannot be bound ({reason}): choose another --host or --port"
        raise BadSetting("address", address_of(host, port), problem) from error
