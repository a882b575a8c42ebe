"""``agentlace services``: what is offered, and calling one of it by hand."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from agentlace.cli import values
from agentlace.cli.options import BrokerOption, JsonOption, NamespaceOption, broker_url, channel
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError, UnknownRequest
from agentlace.operating import Peer, Snapshot, take
from agentlace.transport import presence
from agentlace.transport.connection import Broker
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.requests import RequestClient

KINDS = ("action", "inference", "trainer")
LIST_TIMEOUT_S = 1.0
"""An inference server that is busy for longer is listed without its interfaces."""
MOVING = {"act": "moves what it serves", "request": "runs the trainer's request_callback"}
"""Kinds of call that change something, and how."""

app = typer.Typer(help="List the services, and call one by hand.")


@dataclass(frozen=True)
class Service:
    """What is offered under one name.

    Attributes:
        kind: ``action``, ``inference`` or ``trainer``.
        port_number: names it among those of its kind.
        server: where it is served; None if its server is gone.
        clients: how many there are.
        calls: what ``agentlace services call`` takes for it.
        stores: of a trainer.
    """

    name: str
    kind: str
    port_number: int
    server: str | None
    clients: int
    calls: list[str]
    stores: list[str]


@app.callback(invoke_without_command=True)
def list_services(
    context: typer.Context,
    as_json: JsonOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """List the services: who serves them, and what they can be called for."""
    if context.invoked_subcommand is not None:
        return
    url = broker_url(broker, namespace)
    with channel(url) as to_broker:
        snapshot = take(to_broker, url.namespace)
    services = [_service(snapshot, peer, url) for peer in snapshot.peers if peer.is_server]
    if as_json:
        typer.echo(json.dumps([asdict(service) for service in services], indent=2))
    elif not services:
        typer.echo(f"no services at {url}")
    for service in services if not as_json else []:
        typer.echo(_text(service))


def _service(snapshot: Snapshot, server: Peer, url: BrokerURL) -> Service:
    kind, _, port = server.service.partition(":")
    where = f"{server.host} pid {server.pid}" if server.is_there else None
    clients = len(snapshot.clients(server.service))
    calls = list(_calls(server, url))
    stores = sorted(server.stores)
    return Service(server.service, kind, int(port), where, clients, calls, stores)


def _calls(server: Peer, url: BrokerURL) -> Iterator[str]:
    """Yield what a server can be called for, as ``services call`` takes it."""
    config = server.config
    if server.service.startswith("action:"):
        observed = config.get("observation_keys") or []
        yield " ".join(["obs", *map(str, observed)])
        yield from (f"act {key}" for key in config.get("action_keys") or [])
    elif server.service.startswith("trainer:"):
        yield from map(str, config.get("request_types") or [])
    elif server.is_there:  # it does not say in advance what it offers
        with contextlib.suppress(AgentlaceError), _requests(url, server.service) as requests:
            yield from map(str, requests.call("interfaces", "", None, LIST_TIMEOUT_S))


def _text(service: Service) -> str:
    server = service.server or "no server is there"
    lines = [f"{service.name}  {server}, {service.clients} clients"]
    if service.stores:
        lines.append(f"    stores: {', '.join(service.stores)}")
    lines += [f"    agentlace services call {service.name} {call}" for call in service.calls]
    return "\n".join(lines)


# -- calling ---------------------------------------------------------------------------------------


@app.command("call", help=f"Call a service once and show its answer. {values.RULE}")
def call(
    service: Annotated[str, typer.Argument(help="Such as action:5556, inference:5600.")],
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="obs or act (action), an interface, or a type of request."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY…] [JSON]",
            help="obs: keys, else all. act: its key, and the payload. Others: the payload.",
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds.", min=0.01)] = 5.0,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of lists of numbers in JSON.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before something moves.")] = False,
    as_json: JsonOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Call a service once."""
    url = broker_url(broker, namespace)
    server = _server(url, service)
    kind, name, payload = _request(service, what, arguments or [], server["config"], dtype)
    if kind in MOVING and not yes and _asks():
        where = f"{server['host']} pid {server['pid']}"
        typer.confirm(f"{kind} {name!r} {MOVING[kind]}: {service} on {where}. Call it?", abort=True)
    with _requests(url, service, server["token"]) as requests:
        began_s = time.perf_counter()
        answer = requests.call(kind, name, payload, timeout_s)
        took_ms = 1000 * (time.perf_counter() - began_s)
    if as_json:
        typer.echo(json.dumps(values.to_json(answer)))
        return
    for line in values.described(answer):
        typer.echo(line)
    typer.echo(f"answered in {took_ms:.1f} ms", err=True)


def _asks() -> bool:
    """Whether somebody is there to ask: a script has nobody."""
    return sys.stdin.isatty()


def _request(
    service: str, what: str, arguments: list[str], config: dict[str, Any], dtype: str | None
) -> tuple[str, str, Any]:
    """Return kind, name and payload of a request."""
    if not service.startswith("action:"):
        _check_at_most(1, arguments, f"{service} {what} takes a payload in JSON, and nothing else")
        payload = values.parse(arguments[0], dtype) if arguments else {}
        if service.startswith("inference:"):
            return "call", what, payload
        return "request", _known(what, config.get("request_types"), "request type"), payload
    if what == "obs":
        known = config.get("observation_keys")
        keys = {_known(key, known, "observation key") for key in arguments}
        return "obs", "", keys or set(known or ())
    if what != "act" or not arguments:
        raise UnknownRequest(f"{service} takes `obs [KEY…]` and `act KEY JSON`")
    _check_at_most(2, arguments, "act takes its key and a payload in JSON, and nothing else")
    payload = values.parse(arguments[1], dtype) if len(arguments) > 1 else {}
    return "act", _known(arguments[0], config.get("action_keys"), "action key"), payload


def _check_at_most(count: int, arguments: list[str], problem: str) -> None:
    if len(arguments) > count:
        raise values.BadValue(f"{problem}: there is also {arguments[count]!r}")


def _known(name: str, known: Any, kind: str) -> str:
    if name not in (known or ()):
        offered = ", ".join(map(repr, known or ())) or "none"
        raise UnknownRequest(f"unknown {kind} {name!r}; the server has {offered}")
    return name


def service_keys(url: BrokerURL, service: str) -> ServiceKeys:
    """Return the keys of a service that was named on the command line; raises BadValue."""
    kind, _, port = service.partition(":")
    if kind not in KINDS or not port.isdecimal():
        raise values.BadValue(f"{service!r} is no service: write one such as action:5556")
    return ServiceKeys(url.namespace, kind, int(port))


def _server(url: BrokerURL, service: str) -> presence.Info:
    """Return what the server says of itself; raises PeerAbsent."""
    keys = service_keys(url, service)
    with channel(url) as to_broker:
        at = to_broker.at(keys.prefix)
        server = presence.read_peer(at, keys.server)
        if server is None:
            raise presence.absent(at, keys)
    return {"config": {}, **server}


@contextlib.contextmanager
def _requests(url: BrokerURL, service: str, token: str | None = None) -> Iterator[RequestClient]:
    keys = service_keys(url, service)
    requests = RequestClient(Broker(url, keys.prefix), keys, lambda: token)
    with contextlib.closing(requests):
        yield requests
