"""Options that several commands have, so that they are called and explained alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import typer

from agentlace.config import BadSetting, BrokerURL
from agentlace.transport.connection import CONNECT_TIMEOUT_S, Broker, Channel


def _unless_in_environment(context: typer.Context, param: typer.CallbackParam, value: str) -> str:
    """Leave AGENTLACE_NAMESPACE to the address, whose own ``?ns=`` comes before it."""
    source = context.get_parameter_source(param.name or "")
    return "" if source is not None and source.name == "ENVIRONMENT" else value


BrokerOption = Annotated[
    str,
    typer.Option(
        "--broker",
        metavar="URL",
        envvar="AGENTLACE_BROKER",
        help="Address of the broker; without one, this machine's.",
        show_default=False,
    ),
]
NamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace",
        metavar="NAME",
        envvar="AGENTLACE_NAMESPACE",
        help="Which services of the broker; without one, what the address's ?ns= says.",
        callback=_unless_in_environment,
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def broker_url(broker: str, namespace: str = "") -> BrokerURL:
    """Return the broker that the options name, or else the environment, or else this machine's.

    Raises:
        BadSetting: the address or the namespace cannot be one.
    """
    try:
        url = BrokerURL.resolve(broker or None)
    except BadSetting:
        raise
    except ValueError as error:
        raise BadSetting("--broker", _without_password(broker), str(error)) from None
    if set(namespace) & set("{}"):
        raise BadSetting("--namespace", namespace, "it must not contain braces")
    return replace(url, namespace=namespace) if namespace else url


@contextlib.contextmanager
def channel(url: BrokerURL, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Iterator[Channel]:
    """Give a channel to the broker, closed at the end."""
    with contextlib.closing(Broker(url).channel(connect_timeout_s)) as channel:
        yield channel


def _without_password(address: str) -> str:
    """Return an address that could not be read, as far as it can hold no password."""
    user, at, where = address.rpartition("@")
    scheme, separator, _ = user.partition("://")
    return f"{scheme}://***@{where}" if separator else f"{'***' if at else ''}{at}{where}"
