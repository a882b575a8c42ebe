"""Commands and their options."""

from __future__ import annotations

import typer

from agentlace._version import __version__
from agentlace.cli import broker, consumers, demos, openpi, rlds

app = typer.Typer(
    help="Connect the nodes of a distributed agent through a Redis broker.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(broker.app, name="broker")
app.add_typer(consumers.app, name="consumers")
app.add_typer(demos.app, name="demos")
app.add_typer(rlds.app, name="rlds")
app.command("openpi")(openpi.serve)


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
