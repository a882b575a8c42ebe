"""HTTP endpoints for Prometheus: of one node, of all nodes of this process, or of a registry."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any

from agentlace.errors import AgentlaceError, MissingExtra
from agentlace.forks import process_number
from agentlace.logs import about
from agentlace.metrics.exposition import Families, registry_of
from agentlace.telemetry import Telemetry, running

log = logging.getLogger(__name__)

VARIABLE = "AGENTLACE_METRICS_PORT"
PORT = 9100
LOOPBACK = "127.0.0.1"
READ_TIMEOUT_S = 10.0
"""A scraper that says nothing for so long loses its connection."""


class Endpoint:
    """Answers ``GET /metrics`` until it is closed. A context manager.

    Attributes:
        host: address that it listens on.
        port: its port.
    """

    def __init__(self, server: Any, thread: threading.Thread, host: str) -> None:
        self._server = server
        self._thread = thread
        self._made_in = process_number()
        self.host = host
        self.port: int = server.server_port
        _open.add(self)

    @property
    def url(self) -> str:
        """Where to look."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop; blocks for half a second at most. Idempotent; nothing in a forked child."""
        if self._made_in != process_number():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def let_go(self) -> None:
        """Give up the socket in a forked child: it is the parent's to listen on."""
        with contextlib.suppress(OSError):
            self._server.socket.close()

    def __enter__(self) -> Endpoint:
        """Return the endpoint."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def serve(
    port: int = PORT, host: str = LOOPBACK, nodes: Iterable[Telemetry] | None = None
) -> Endpoint:
    """Serve the numbers of nodes.

    Args:
        port: 0 for any free one.
        host: address to listen on.
        nodes: whose; if None those of all nodes that run in this process at each scrape.

    Raises:
        AgentlaceError: the port is taken, or the address is none of this machine's.
        MissingExtra: prometheus_client is not installed.
    """
    given = None if nodes is None else list(nodes)
    return serve_registry(registry_of(lambda: families(given)), port, host)


def serve_registry(registry: Any, port: int, host: str) -> Endpoint:
    """Serve a registry of prometheus_client; raises as :func:`serve`."""
    try:
        from prometheus_client import start_http_server
    except ImportError as error:
        raise MissingExtra("prometheus_client", "metrics") from error
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AgentlaceError(
            f"metrics cannot be served at {host}:{port}: {reason}; give another port, or 0 for "
            "any that is free"
        ) from error
    thread.name = "metrics"
    handler: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("Handler", (handler,), {"timeout": READ_TIMEOUT_S})
    endpoint = Endpoint(server, thread, host)
    log.info("metrics are served at %s", endpoint.url)
    return endpoint


def families(nodes: list[Telemetry] | None = None) -> list[Any]:
    """Return the numbers of nodes of this process; of all that run if None."""
    found = Families()
    for node in running() if nodes is None else nodes:
        labels = {"service": node.service, "node": node.node, "role": node.role}
        found.add(node.samples(), labels)
    return found.all()


class _Asked:
    """The endpoint that the environment asks for: one for all nodes of the process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_done = False
        self.endpoint: Endpoint | None = None


_asked = _Asked()


def serve_if_asked() -> None:
    """Serve on AGENTLACE_METRICS_PORT, if it is set and this process does not yet.

    What keeps it from that is logged, once: a robot does not stand still for its metrics.
    """
    port = os.environ.get(VARIABLE)
    if not port:
        return
    with _asked.lock:
        if _asked.is_done:
            return
        _asked.is_done = True
        try:
            _asked.endpoint = serve(int(port))
        except ValueError:
            text = "%s=%r is no port number: metrics are not served"
            log.error(text, VARIABLE, port, extra=about())
        except AgentlaceError as error:
            log.error("%s=%s: %s", VARIABLE, port, error, extra=about(error=error))


def end_if_asked() -> None:
    """End what :func:`serve_if_asked` began: no node of this process runs any more."""
    with _asked.lock:
        endpoint, _asked.endpoint, _asked.is_done = _asked.endpoint, None, False
    if endpoint is not None:
        endpoint.close()


def _after_fork() -> None:
    """Leave the parent's endpoints alone; nodes that the child starts may have one of their own."""
    global _asked
    _asked = _Asked()
    for endpoint in list(_open):
        endpoint.let_go()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
