"""How far a command is: a bar on a terminal, a plain line now and then anywhere else.

Both go to standard error, so that what a command prints can be piped, and both appear only when
something takes longer than a moment.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import typer

from agentlace.progress import EVERY_S, FIRST_S, Advance


@contextlib.contextmanager
def shown(what: str, total: int | None = None, unit: str = "episodes") -> Iterator[Advance]:
    """Show how far something is; gives what is to be called with how much more is done.

    Args:
        what: is being done, such as ``verifying data/cube``.
        total: of what is counted, None if that is not known.
        unit: of it.
    """
    if sys.stderr.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
    else:
        yield _lines(what, total, unit)


@contextlib.contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=total)
    begin_s, is_shown = time.monotonic() + FIRST_S, False

    def advance(more: int) -> None:
        nonlocal is_shown
        progress.advance(task, more)
        if not is_shown and time.monotonic() >= begin_s:
            is_shown = True
            progress.start()

    try:
        yield advance
    finally:
        progress.stop()


def _lines(what: str, total: int | None, unit: str) -> Advance:
    done, due_s = 0, time.monotonic() + FIRST_S

    def advance(more: int) -> None:
        nonlocal done, due_s
        done += more
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + EVERY_S
            of = "" if total is None else f" of {total:,}"
            typer.echo(f"{what}: {done:,}{of} {unit}", err=True)

    return advance
