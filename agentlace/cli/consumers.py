"""``agentlace consumers``: who reads the streams, how far behind, and forgetting who does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from agentlace.cli import options
from agentlace.cli.options import BrokerOption, JsonOption, NamespaceOption
from agentlace.config import BrokerURL
from agentlace.errors import AgentlaceError
from agentlace.transport import lag
from agentlace.transport.connection import Channel
from agentlace.transport.keys import StoreKeys
from agentlace.transport.lag import ConsumerState
from agentlace.wording import duration

PIPED_WIDTH = 200
"""Columns of a table that does not go to a terminal."""

app = typer.Typer(help="List the consumers of the streams, and forget one that is gone for good.")

StoreOption = Annotated[str, typer.Option("--store", metavar="NAME", help="Only this store.")]


@app.callback(invoke_without_command=True)
def list_consumers(
    context: typer.Context,
    store: StoreOption = "",
    as_json: JsonOption = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """List the consumers of every store with their lag, the slowest first."""
    if context.invoked_subcommand is not None:
        return
    url = options.broker_url(broker, namespace)
    with options.channel(url) as channel:
        found = [states for _, states in _found(channel, url, store)]
    states = [state for group in found for state in group]
    if as_json:
        typer.echo(json.dumps([_as_json(state) for state in states], indent=2))
    elif not states:
        typer.echo(f"no consumers{f' of store {store!r}' if store else ''} at {url}")
    else:
        _print_table(states)


@app.command("forget")
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `agentlace consumers` lists it.")],
    store: StoreOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Also if it is alive.")] = False,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Forget a consumer: what only it has not read is kept no longer."""
    url = options.broker_url(broker, namespace)
    with options.channel(url) as channel:
        found = list(_found(channel, url, store))
        mine = [(keys, s) for keys, states in found for s in states if s.name == name]
        if not mine:
            known = sorted({state.name for _, states in found for state in states})
            raise AgentlaceError(f"no consumer {name!r} at {url}, but {known or 'none at all'}")
        alive = [state for _, state in mine if state.is_alive]
        if alive and not yes:
            raise AgentlaceError(
                f"consumer {name!r} is alive (host {alive[0].host}, pid {alive[0].pid}): stop it, "
                "or pass --yes; as long as it runs it registers again, and may miss what is "
                "trimmed before that"
            )
        for keys, state in mine:
            lag.forget(channel.at(keys.prefix), keys, name)
            typer.echo(
                f"store {keys.name!r}: forgot consumer {name!r}, which was {state.behind:,} "
                "transitions behind"
            )


def _found(
    channel: Channel, url: BrokerURL, store: str
) -> Iterator[tuple[StoreKeys, list[ConsumerState]]]:
    for keys in lag.stores(channel, url.namespace, store or None):
        yield keys, lag.consumer_states(channel.at(keys.prefix), keys)


def _as_json(state: ConsumerState) -> dict[str, Any]:
    return {**asdict(state), "is_alive": state.is_alive}


def _print_table(states: list[ConsumerState]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in ("service", "store", "consumer", "where"):
        table.add_column(title, overflow="fold")
    for title in ("behind", "progress", "state"):
        table.add_column(title, justify="right", overflow="fold")
    for state in states:
        where = f"{state.host} pid {state.pid}" if state.pid else "?"
        alive = "alive" if state.is_alive else f"silent for {duration(state.seen_s)}"
        table.add_row(
            *(state.service, state.store, state.name, where),
            *(f"{state.behind:,}", f"{duration(state.progress_s)} ago", alive),
        )
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)
