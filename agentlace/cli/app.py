"""Commands and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from agentlace._version import __version__
from agentlace.cli import (
    bench,
    broker,
    consumers,
    dashboard,
    demos,
    doctor,
    metrics,
    openpi,
    rlds,
    services,
    status,
    tail,
)

EPILOG = (
    "Exit status: 0 all is well; 1 it failed, or something is wrong; 2 the command line is wrong; "
    "3 rlds export: not all that was sent is in the dataset; 130 ended by Ctrl-C."
)

app = typer.Typer(
    help="Connect the nodes of a distributed agent through a Redis broker.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)
app.add_typer(broker.app, name="broker")
app.add_typer(consumers.app, name="consumers")
app.add_typer(demos.app, name="demos")
app.command("metrics")(metrics.metrics)
app.add_typer(rlds.app, name="rlds")
app.add_typer(services.app, name="services")
app.command("status")(status.status)
app.add_typer(tail.app, name="tail")
app.command("dashboard")(dashboard.dashboard)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.command("openpi")(openpi.serve)


@app.callback()
def common(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks of errors, as AGENTLACE_DEBUG=1 does."),
    ] = False,
) -> None:
    """Connect the nodes of a distributed agent through a Redis broker."""


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
