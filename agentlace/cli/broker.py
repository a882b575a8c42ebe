"""``agentlace broker``: the embedded broker in the foreground."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from agentlace.addresses import is_loopback
from agentlace.cli import broker_init
from agentlace.config import BadSetting, read_password
from agentlace.errors import AgentlaceError
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.secured import SecuredDirectory, SecuredSettings

app = typer.Typer(help="Run the broker until Ctrl-C or SIGTERM.", invoke_without_command=True)
app.command("init")(broker_init.init)


@app.callback()
def run(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(help="Address to bind, by default 127.0.0.1; not loopback: needs a password."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="TCP port.", min=1, max=65535)] = None,
    directory: Annotated[
        str | None,
        typer.Option("--dir", help="Keep the data here; or what `agentlace broker init` made."),
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
    no_tls: Annotated[
        bool, typer.Option("--no-tls", help="Start what `init` made without its TLS.")
    ] = False,
) -> None:
    """Run the broker until Ctrl-C or SIGTERM."""
    if context.invoked_subcommand is not None:
        return
    made = SecuredDirectory(Path(directory).resolve()) if directory else None
    if made is not None and made.is_made:
        if password_file or port or maxmemory or appendfsync != "everysec":
            problem = f"it has users and settings of its own: edit {made.conf}, leave options out"
            raise BadSetting("--dir", directory, problem)
        return _serve(SecuredSettings.of(made, host, tls=not no_tls))
    if no_tls:
        raise BadSetting("--no-tls", True, "only with a --dir that `agentlace broker init` made")
    password = read_password(password_file, "--password-file") if password_file else None
    host = host or "127.0.0.1"
    if not is_loopback(host) and not password:
        problem = (
            "refused without a password, as whoever reaches the port could drive your robot: "
            "write one into a file and pass --password-file FILE, or see agentlace broker init"
        )
        raise BadSetting("--host", host, problem)
    _serve(Settings(host, port or 6379, directory, password, maxmemory, appendfsync))


def _serve(settings: Settings) -> None:
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
    if isinstance(settings, SecuredSettings):
        if not settings.tls:
            typer.echo("without TLS: passwords and transitions travel in the clear")
        return
    if not is_loopback(settings.host):
        where = socket.gethostname() if settings.host == "0.0.0.0" else settings.host
        typer.echo(
            "on the other machines:\n"
            f"  export AGENTLACE_BROKER=redis://{where}:{settings.port}\n"
            "  export AGENTLACE_PASSWORD=…   # what --password-file holds"
        )
