"""``agentlace status``: who is there, how fast data flows, and what it waits for."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from agentlace.cli.options import BrokerOption, JsonOption, NamespaceOption, broker_url, channel
from agentlace.errors import AgentlaceError, BrokerUnreachable
from agentlace.operating import Looker, Report

PIPED_WIDTH = 160
"""Columns where the output does not go to a terminal."""
EVERY_S = 2.0

AllOption = Annotated[
    bool, typer.Option("--all", help="Show every node, not only those with something to tell.")
]


def status(
    seconds: Annotated[
        float,
        typer.Argument(
            metavar="[SECONDS]", help="With --watch: between two looks.", min=0.1, max=3600
        ),
    ] = EVERY_S,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until Ctrl-C.")] = False,
    show_all: AllOption = False,
    as_json: JsonOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Show who is there, how fast data flows, and what each node waits for.

    What is wrong comes first. Takes a second, for the rates. Exit status: 0 if any node is
    there; 1 if none is, or the broker cannot be reached.
    """
    url = broker_url(broker, namespace)
    with channel(url) as to_broker:
        looker = Looker(to_broker, url.namespace)
        if watch:
            with contextlib.suppress(KeyboardInterrupt):
                _watch(looker.report, seconds, show_all, as_json)
            return
        report = looker.report()
    show = _json_line if as_json else _shown
    show(report, show_all)
    if not any(node.state != "gone" for service in report.services for node in service.nodes):
        raise typer.Exit(1)


def _json_line(report: Report, show_all: bool = True) -> None:
    typer.echo(json.dumps(asdict(report)))


def _shown(report: Report, show_all: bool) -> None:
    from agentlace.cli.status_view import view

    console = _console()
    console.print(view(report, show_all, console.width))


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        return Console(highlight=False, width=PIPED_WIDTH, soft_wrap=True)
    return console


def _watch(look: Callable[[], Report], every_s: float, show_all: bool, as_json: bool) -> None:
    """Show report after report: on a terminal in place, else one below the other."""
    console, never = _console(), threading.Event()
    if as_json or not console.is_terminal:
        for report in _reports(look, lambda error: typer.echo(f"agentlace: {error}", err=True)):
            (_json_line if as_json else _shown)(report, show_all)
            never.wait(every_s)
        return
    from rich.live import Live

    from agentlace.cli.status_view import view

    with Live(console=console, screen=True, auto_refresh=False) as live:
        for report in _reports(look, lambda error: live.update(f"[red]{error}[/]", refresh=True)):
            live.update(view(report, show_all, console.width), refresh=True)
            never.wait(every_s)


def _reports(
    look: Callable[[], Report], tell: Callable[[AgentlaceError], object]
) -> Iterator[Report]:
    """Yield reports without end; a broker that is away may come back."""
    never = threading.Event()
    while True:
        try:
            report = look()
        except BrokerUnreachable as error:
            tell(error)
            never.wait(EVERY_S)
            continue
        yield report
