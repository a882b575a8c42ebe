"""How far a command is: a bar on a terminal, a plain line now and then anywhere else.

Both go to standard error, so that what a command prints can be piped, and both appear only when
something takes longer than a moment, also if it cannot say how far it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import typer

from agentlace import progress
from agentlace.progress import Advance


class Display(Protocol):
    """Shows how far something is."""

    def advance(self, more: int) -> None:
        """Count what was done."""

    def show(self) -> None:
        """Show it now; called from a thread, again and again."""

    def stop(self) -> None:
        """Show no more."""


@contextlib.contextmanager
def shown(what: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
    """Show how far something is; gives what is to be called with how much more is done.

    Args:
        what: is being done, such as ``verifying data/cube``.
        total: of what is counted, None if that is not known.
        unit: of it; empty if nothing is counted.
    """
    display: Display = (_Bar if _can_draw() else _Lines)(what, total, unit)
    stopping = threading.Event()
    thread = threading.Thread(target=_run, args=(display, stopping), name="progress", daemon=True)
    thread.start()
    try:
        yield display.advance
    finally:
        stopping.set()
        thread.join()
        display.stop()


def _can_draw() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _run(display: Display, stopping: threading.Event) -> None:
    pause_s = progress.FIRST_S
    while not stopping.wait(pause_s):
        display.show()
        pause_s = progress.EVERY_S


class _Bar:
    """Draws a bar, which redraws itself."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        bar = BarColumn(bar_width=None)  # as wide as the rest leaves room for
        columns: list[Any] = [TextColumn("{task.description}", markup=False), bar]
        if unit:
            columns += [MofNCompleteColumn(), TextColumn(unit)]
        columns += [TimeElapsedColumn()] if total is None else [TimeRemainingColumn()]
        self._progress = Progress(*columns, console=console, transient=True, expand=True)
        self._task = self._progress.add_task(_short(what, console.width // 2), total=total)

    def advance(self, more: int) -> None:
        self._progress.advance(self._task, more)

    def show(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()


def _short(text: str, width: int) -> str:
    """Return a text of this width at most; paths are told apart by their ends."""
    begin = width // 3
    return text if len(text) <= width else f"{text[:begin]}…{text[begin + 1 - width :]}"


class _Lines:
    """Writes a line each time."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._done = 0
        self._began = time.monotonic()

    def advance(self, more: int) -> None:
        self._done += more

    def show(self) -> None:
        of = "" if self._total is None else f" of {self._total:,}"
        far = f" {self._done:,}{of} {self._unit}," if self._unit else ""
        typer.echo(f"{self._what}:{far} {time.monotonic() - self._began:.0f} s", err=True)

    def stop(self) -> None:
        pass
