"""``agentlace metrics``: the whole system's numbers for Prometheus."""

from __future__ import annotations

import contextlib
import threading
from typing import Annotated

import typer

from agentlace.cli.options import BrokerOption, NamespaceOption, broker_url, channel
from agentlace.metrics.endpoint import LOOPBACK, serve_registry
from agentlace.operating import take
from agentlace.operating.prometheus import exposition, live_registry

CONNECT_TIMEOUT_S = 2.0
"""Shorter than a scraper's patience."""


def metrics(
    port: Annotated[
        int | None,
        typer.Option("--port", help="Serve on this port (0: any); print once without it."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = LOOPBACK,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Print the numbers of all nodes, streams and the broker, or serve them to Prometheus.

    There is no password: on another host than loopback, whoever reaches the port reads them.
    """
    url = broker_url(broker, namespace)
    with channel(url, CONNECT_TIMEOUT_S) as there:
        if port is None:
            typer.echo(exposition(take(there, url.namespace)), nl=False)
            return
        registry = live_registry(lambda: take(there, url.namespace))
        with serve_registry(registry, port, host) as endpoint:
            typer.echo(f"numbers of {url} at {endpoint.url} (Ctrl-C ends it)")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
