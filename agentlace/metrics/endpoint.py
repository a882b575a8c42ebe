"""An HTTP endpoint with the numbers of all nodes of this process, for Prometheus."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from agentlace.errors import AgentlaceError
from agentlace.metrics.exposition import Families, registry_of
from agentlace.telemetry import running

log = logging.getLogger(__name__)

VARIABLE = "AGENTLACE_METRICS_PORT"
LOOPBACK = "127.0.0.1"


class Endpoint:
    """Answers ``GET /metrics`` until it is closed. A context manager.

    Attributes:
        host: address that it listens on.
        port: its port.
    """

    def __init__(self, server: Any, thread: threading.Thread, host: str) -> None:
        self._server = server
        self._thread = thread
        self.host = host
        self.port: int = server.server_port

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://{self.host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Endpoint:
        """Return the endpoint."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def serve(port: int = 9100, host: str = LOOPBACK) -> Endpoint:
    """Serve the numbers of all nodes of this process, those that are started later included.

    Reading them costs the nodes what a heartbeat does. There is no password: on another host
    than loopback, whoever reaches the port reads the numbers and the nodes' names.

    Args:
        port: 0 for any free one.
        host: address to listen on.

    Raises:
        AgentlaceError: the port is taken, or the address is none of this machine's.
        MissingExtra: prometheus_client is not installed.
    """
    return serve_registry(registry_of(families), port, host)


def serve_registry(registry: Any, port: int, host: str) -> Endpoint:
    """Serve a registry of prometheus_client; raises as :func:`serve`."""
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AgentlaceError(
            f"metrics cannot be served at {host}:{port}: {reason}; give another port "
            f"({VARIABLE}=0 takes any free one)"
        ) from error
    log.info("metrics are served at http://%s:%d/metrics", host, server.server_port)
    return Endpoint(server, thread, host)


def families() -> list[Any]:
    """Return the numbers of all nodes of this process."""
    found = Families()
    for node in running():
        labels = {"service": node.service, "node": node.node, "role": node.role}
        found.add(node.samples(), labels)
    return found.all()


_wanted = threading.Lock()
_served: dict[int, Endpoint | None] = {}
"""By process: what the environment asked for, None if it could not be served."""


def serve_if_asked() -> None:
    """Serve on AGENTLACE_METRICS_PORT, if it is set and this process does not yet.

    What keeps it from that is logged: a robot does not stand still for its metrics.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    with _wanted:
        if os.getpid() in _served:
            return
        _served[os.getpid()] = None
        try:
            _served[os.getpid()] = serve(int(asked))
        except ValueError:
            log.error("%s=%r is no port number: metrics are not served", VARIABLE, asked)
        except AgentlaceError as error:
            log.error("%s", error)
