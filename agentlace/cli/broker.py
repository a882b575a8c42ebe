"""``agentlace broker``: the embedded broker in the foreground."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from agentlace.config import BadSetting, read_password
from agentlace.errors import AgentlaceError
from agentlace.transport.embedded import EmbeddedBroker, Settings


def run(
    host: Annotated[str, typer.Option(help="Address to bind; not loopback: needs a password.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 6379,
    directory: Annotated[
        str | None, typer.Option("--dir", help="Keep the data here, across restarts.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File that holds the password.", exists=True, dir_okay=False)
    ] = None,
    maxmemory: Annotated[
        str, typer.Option(help="Such as 4gb. Default: half of the memory, at most 4 GiB.")
    ] = "",
    appendfsync: Annotated[
        str, typer.Option(help="everysec, always or no; with --dir.")
    ] = "everysec",
) -> None:
    """Run the broker until Ctrl-C or SIGTERM."""
    password = read_password(password_file, "--password-file") if password_file else None
    if not _is_loopback(host) and not password:
        problem = (
            "refused without a password, as whoever reaches the port could drive your robot: "
            "write one into a file and pass --password-file FILE"
        )
        raise BadSetting("--host", host, problem)
    settings = Settings(host, port, directory, password, maxmemory, appendfsync)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # also while it loads its file
    with contextlib.suppress(KeyboardInterrupt), _named_as_options():
        with EmbeddedBroker(settings) as embedded:
            _welcome(settings)
            status = embedded.wait()
            log = f"its log is {embedded.log_path}"
            raise AgentlaceError(f"the broker at {settings.url} ended with status {status}: {log}")


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """Have errors name a setting as it is named on the command line."""
    try:
        yield
    except BadSetting as error:
        raise AgentlaceError(f"--{error}") from error


def _welcome(settings: Settings) -> None:
    kept = f"kept in {settings.directory}" if settings.directory else "in memory only (no --dir)"
    typer.echo(f"broker at {settings.url}, data {kept}")
    if not _is_loopback(settings.host):
        where = socket.gethostname() if settings.host == "0.0.0.0" else settings.host
        typer.echo(
            "on the other machines:\n"
            f"  export AGENTLACE_BROKER=redis://{where}:{settings.port}\n"
            "  export AGENTLACE_PASSWORD=…   # what --password-file holds"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
