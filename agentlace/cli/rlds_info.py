"""``agentlace rlds info``: what a dataset holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentlace.cli.options import JsonOption

if TYPE_CHECKING:
    from agentlace.rlds.summary import Summary


def info(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw lengths, returns, endings and some frames."),
    ] = None,
) -> None:
    """Show episodes, steps, features, lengths, returns, and how each episode ended.

    DIR is the folder of one version, such as data/my_dataset/1.0.0.
    """
    from agentlace.cli.progress import shown
    from agentlace.rlds.reader import DatasetReader
    from agentlace.rlds.summary import summarise

    reader = DatasetReader(directory)
    with shown(f"reading {directory}", len(reader), "episodes") as advance:
        summary = summarise(reader, advance)
    if plot is not None:
        from agentlace.cli.rlds_plot import draw

        with shown(f"drawing {plot}"):
            draw(reader, summary, plot)
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2))
    else:
        _show(summary)
        if plot is not None:
            typer.echo(f"drawn in {plot}")


def _show(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    size = f"{summary.nbytes / 1e6:,.1f} MB in {summary.files:,} files"
    console.print(f"[bold]{summary.name}[/bold] {summary.version}", markup=True)
    console.print(f"{summary.episodes:,} episodes, {summary.steps:,} steps, {size}")
    endings = [f"{n:,} {ending}" for ending, n in summary.endings.items()]
    console.print(f"ended: {', '.join(endings) or 'none'}", markup=False)
    told: dict[str, Any] = summary.to_json()
    spread = Table("per episode", "least", "median", "mean", "most", box=None)
    for name, values in (("steps", told["lengths"]), ("return", told["returns"])):
        if values is not None:
            spread.add_row(name, *(f"{value:,.6g}" for value in values.values()))
    console.print(spread)
    features = Table("feature", "stored as", box=None)
    for path, kind in summary.features.items():
        features.add_row(path, kind)
    console.print(features, markup=False)
