"""``agentlace metrics``: the whole system's numbers for Prometheus."""

from __future__ import annotations

import contextlib
import threading
from typing import Annotated

import typer

from agentlace.cli.options import BrokerOption, NamespaceOption, broker_url
from agentlace.metrics.endpoint import LOOPBACK, serve_registry
from agentlace.operating import take
from agentlace.operating.prometheus import exposition, live_registry
from agentlace.transport.connection import Broker


def metrics(
    port: Annotated[
        int | None, typer.Option("--port", help="Serve on this port; print once without it.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = LOOPBACK,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Print the numbers of all nodes, streams and the broker, or serve them to Prometheus."""
    url = broker_url(broker, namespace)
    with contextlib.closing(Broker(url).channel()) as channel:
        if port is None:
            typer.echo(exposition(take(channel, url.namespace)), nl=False)
            return
        registry = live_registry(lambda: take(channel, url.namespace))
        with serve_registry(registry, port, host) as endpoint:
            typer.echo(f"serving {endpoint.url} (Ctrl-C ends it)")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
