"""``agentlace rlds verify``: what is wrong with a dataset, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
) -> None:
    """Read a whole dataset and compare CRCs, counts, flags and the alignment of steps.

    DIR is the folder of one version, such as data/my_dataset/1.0.0. Ends with status 1, and a
    line for each problem, if something is wrong.
    """
    from agentlace.cli.progress import shown
    from agentlace.rlds import verify as checks
    from agentlace.rlds.reader import DatasetReader

    reader = DatasetReader(directory)
    with shown(f"verifying {directory}", len(reader), "episodes") as advance:
        verdict = checks.verify(reader, advance)
    for problem in verdict.problems:
        typer.echo(problem)
    looked_at = f"{verdict.episodes:,} episodes, {verdict.steps:,} steps"
    if verdict.problems:
        typer.echo(f"{looked_at}: {len(verdict.problems):,} problems", err=True)
        raise typer.Exit(1)
    typer.echo(f"{looked_at}: all is well")
