"""``agentlace openpi``: an interface for clients that speak openpi's protocol."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlace.addresses import is_loopback
from agentlace.cli.options import BrokerOption, NamespaceOption, broker_url
from agentlace.config import BadSetting, read_password
from agentlace.inference.client import InferenceClient

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_MS = 1000.0
"""So long the policy server is looked for at the start, in milliseconds."""


def serve(
    interface: Annotated[str, typer.Option(help="Its name; policy@2 is its version 2.")],
    service: Annotated[int, typer.Option(help="The inference service's port_num.", min=0)],
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0: any.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients must show.", dir_okay=False)
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="JSON file with what clients get first.", dir_okay=False)
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Deadline of one call.", min=0.001)] = 60.0,
    max_clients: Annotated[int, typer.Option(help="So many at a time.", min=1)] = 64,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Let openpi's clients call an interface, until Ctrl-C or SIGTERM."""
    from agentlace.inference.openpi.server import OpenpiServer

    key = None if api_key_file is None else read_password(api_key_file, "--api-key-file")
    about = {} if metadata is None else _read_metadata(metadata)
    url = broker_url(broker, namespace)
    _warn(host, key)
    with InferenceClient("localhost", service, LOOK_MS, broker=url) as client:
        _look_for(client, interface)
        client.timeout_ms = 1000 * timeout_s
        server = OpenpiServer(client, interface, host, port, key, about, max_clients)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: server.stop())  # before it runs
        server.run(
            lambda at: typer.echo(f"openpi's clients reach {interface!r} of {url} at {at}"),
            STOP_SIGNALS,
        )


def _look_for(client: InferenceClient, interface: str) -> None:
    """Warn if calls will fail: the policy server may also come later."""
    names = client.interfaces()
    if not names:
        typer.echo(f"warning: {client.last_error or 'the server offers no interface'}", err=True)
    elif interface.partition("@")[0] not in names and interface not in names:
        known = ", ".join(map(repr, sorted(names)))
        typer.echo(f"warning: the server has no interface {interface!r}, but {known}", err=True)


def _warn(host: str, key: str | None) -> None:
    if is_loopback(host):
        return
    shown = "and no key is asked for" if key is None else "not even for the key"
    typer.echo(
        f"warning: whoever reaches {host} may call the policy: openpi's protocol has no "
        f"encryption, {shown} (see docs/inference.md)",
        err=True,
    )


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSetting("--metadata", str(path), str(error)[:200]) from None
    if not isinstance(found, dict):
        raise BadSetting("--metadata", str(path), "it must hold a JSON object")
    return found
