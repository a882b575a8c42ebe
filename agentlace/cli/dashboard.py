"""``agentlace dashboard``: one page that shows the whole system, live."""

from __future__ import annotations

import os
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from agentlace.cli.options import BrokerOption, NamespaceOption, broker_url
from agentlace.config import BrokerURL, read_password
from agentlace.errors import MissingExtra

PREFIX = "AGENTLACE_DASHBOARD_"


def dashboard(
    host: Annotated[
        str, typer.Option(help="Address to bind; not loopback: needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.", min=0, max=65535)] = 8080,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the viewers' password.", dir_okay=False)
    ] = None,
    admin_password_file: Annotated[
        Path | None,
        typer.Option(help="File with the password for the buttons; none: no buttons."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name under which the page may be reached. Repeatable."),
    ] = None,
    operator_broker: Annotated[
        str | None,
        typer.Option(help="Address for the buttons, with a user that may command (operator)."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Serve a page that shows the whole system, live, until Ctrl-C."""
    try:
        from agentlace.dashboard.auth import Passwords
        from agentlace.dashboard.serving import Settings, WebServer
    except ImportError as error:
        raise MissingExtra(error.name or "starlette", "web") from error
    url = broker_url(broker, namespace)
    operator = (
        BrokerURL.parse(told) if (told := operator_broker or _set("OPERATOR_BROKER")) else url
    )
    passwords = Passwords(
        _password(password_file, "--password-file", "PASSWORD"),
        _password(admin_password_file, "--admin-password-file", "ADMIN_PASSWORD"),
    )
    operator = replace(operator, namespace=url.namespace)
    names = tuple(allowed_host or [])
    server = WebServer(Settings(url, operator, host, port, passwords, names))
    typer.echo(f"dashboard of {url} at {server.url} (Ctrl-C ends it)")
    if open_page:
        webbrowser.open(server.url)
    server.run()


def _set(name: str) -> str | None:
    return os.environ.get(PREFIX + name) or None


def _password(path: Path | None, option: str, name: str) -> str | None:
    """Return a password: of the option's file, the variable, or the variable's file."""
    if path is not None:
        return read_password(path, option)
    if told := _set(name):
        return told
    if told := _set(f"{name}_FILE"):
        return read_password(told, f"{PREFIX}{name}_FILE")
    return None
