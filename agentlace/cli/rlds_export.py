"""``agentlace rlds export``: streams recorded as a dataset."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlace.cli import options
from agentlace.cli.options import BrokerOption, NamespaceOption
from agentlace.config import TrainerConfig
from agentlace.recorder import Counts, Recorder, Settings, Status

LINE_EVERY_S = 5.0
"""How often a line of progress is printed where there is no terminal."""
DRAW_EVERY_S = 0.25
MAX_ACTORS = 20
"""So many actors are shown while recording, those that are furthest behind first."""
PIPED_WIDTH = 160
"""Columns of a table that does not go to a terminal."""
INCOMPLETE = 3
"""Exit status if not all that was sent is in the dataset."""
KILLED = 130
MIB = 1 << 20


def export(
    store: Annotated[
        list[str],
        typer.Option(help="Name of a store; several with commas, or one by one.", metavar="S[,S2]"),
    ],
    name: Annotated[str, typer.Option(help="Of the dataset: letters, digits, underscores.")],
    data_dir: Annotated[
        Path, typer.Option(help="Folder of datasets; DIR/NAME/VERSION is written.", metavar="DIR")
    ],
    version: Annotated[str, typer.Option(help="Of the dataset.")] = Settings.version,
    once: Annotated[
        bool, typer.Option("--once", help="End when all is read that is in the streams now.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="At the end, let the streams not wait for this one.")
    ] = False,
    image_format: Annotated[
        str, typer.Option(help="Of a new dataset's images: png, or jpeg (lossy).")
    ] = Settings.image_format,
    abort_after: Annotated[
        float,
        typer.Option(help="Seconds of silence that end the episode of an actor.", metavar="S"),
    ] = Settings.abort_after_s,
    open_max: Annotated[
        int, typer.Option(help="Of one actor's open episode in memory; cut there.", metavar="MIB")
    ] = Settings.open_max_bytes // MIB,
    commit_every: Annotated[
        float, typer.Option(help="Seconds between two commits.", metavar="S")
    ] = Settings.commit_every_s,
    trainer_port: Annotated[
        int, typer.Option("--trainer-port", "--port", help="port_number of the trainer's config.")
    ] = TrainerConfig.port_number,
    broker: BrokerOption = "",
    namespace: NamespaceOption = "",
) -> None:
    """Record the streams of stores as an RLDS dataset, until Ctrl-C or SIGTERM.

    It may be killed and started again at any time: nothing is lost, nothing doubled. Episodes
    that are open when it ends stay in the streams. The exit status is 3 if not all that was sent
    is in the dataset.
    """
    url = options.broker_url(broker, namespace)
    recorder = Recorder(
        [part for item in store for part in item.split(",") if part],
        data_dir,
        name,
        port_number=trainer_port,
        broker=url,
        settings=Settings(version, image_format, abort_after, open_max * MIB, commit_every),  # type: ignore[arg-type]
    )
    _interrupt_on_signals(recorder)
    try:
        recorder.start()
        typer.echo(f"recording {', '.join(recorder.stores)} of {url} into {recorder.directory}")
        _record(recorder, once)
    finally:
        recorder.stop(forget)
    _conclude(recorder, forget)


def _interrupt_on_signals(recorder: Recorder) -> None:
    """Let the first signal end the recording, and the second one the program."""

    def interrupt(*_: object) -> None:
        if recorder.is_interrupted:
            os._exit(KILLED)  # nothing is lost by it
        recorder.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def _record(recorder: Recorder, once: bool) -> None:
    if not sys.stdout.isatty():
        show = _at_most_every(LINE_EVERY_S, lambda: typer.echo(_line(recorder.status())))
        recorder.run(once, show)
        return
    from rich.live import Live

    with Live(_table(recorder.status()), auto_refresh=False) as live:
        draw = _at_most_every(
            DRAW_EVERY_S, lambda: live.update(_table(recorder.status()), refresh=True)
        )
        recorder.run(once, draw)


def _at_most_every(seconds: float, work: Callable[[], object]) -> Callable[[], None]:
    due = time.monotonic()

    def at_most() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            work()

    return at_most


def _line(status: Status) -> str:
    counts = status.counts
    parts = [
        f"{status.episodes:,} episodes, {status.steps:,} steps, {_size(status.nbytes)}",
        f"{status.lag:,} behind",
        f"committed {status.committed_ago_s:.0f} s ago",
    ]
    parts += [f"{counts.quarantined:,} quarantined"] if counts.quarantined else []
    parts += [f"{counts.lost:,} lost"] if counts.lost else []
    return " · ".join(parts)


def _table(status: Status) -> Any:
    """Return how things stand, for a terminal."""
    from rich.table import Table

    table = Table(box=None, caption=_line(status), caption_justify="left")
    titles = ("store", "actor", "episodes", "steps", "open", "behind", "")
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if 2 <= number < 6 else "left", overflow="fold")
    actors = sorted((a for a in status.actors if a.actor), key=lambda a: (-a.lag, not a.is_there))
    for actor in actors[:MAX_ACTORS]:
        counts = actor.counts
        numbers = (counts.written, counts.steps, actor.open_rows, actor.lag)
        is_there = "" if actor.is_there else "gone"
        table.add_row(actor.store, actor.actor, *(f"{n:,}" for n in numbers), is_there)
    if len(actors) > MAX_ACTORS:
        table.add_row("", f"and {len(actors) - MAX_ACTORS} more")
    return table


def _conclude(recorder: Recorder, forget: bool) -> None:
    """Print what was sent against what was written; leave the program if they differ."""
    status = recorder.status()
    _print_summary(status)
    typer.echo(f"{recorder.directory}: {_line(status)}")
    if status.counts.quarantined:
        typer.echo(f"what does not fit is in {recorder.quarantine}")
    open_rows = sum(actor.open_rows for actor in status.actors)
    if open_rows:
        fate = "given up" if forget else "kept in the streams for the next time"
        typer.echo(f"{open_rows:,} transitions of episodes that are still open are {fate}")
    if not forget:
        typer.echo(f"the streams are kept for {recorder.consumer_name}; --forget gives that up")
    if not status.is_complete:
        counts = status.counts
        typer.echo(
            f"agentlace: {counts.sent:,} episodes were sent, and {counts.written:,} are written: "
            f"{counts.quarantined:,} do not fit, {counts.lost:,} transitions and marks are lost",
            err=True,
        )
        raise typer.Exit(INCOMPLETE)


def _print_summary(status: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    titles = ("sent", "written", "empty", "quarantined", "discarded", "lost", "steps", "open")
    for title in ("store", "actor"):
        table.add_column(title, overflow="fold")
    for title in titles:
        table.add_column(title, justify="right")
    for actor in status.actors:
        numbers = _numbers(actor.counts, actor.open_rows)
        table.add_row(actor.store, actor.actor or "(others)", *numbers)
    open_rows = sum(actor.open_rows for actor in status.actors)
    table.add_row("all", "", *_numbers(status.counts, open_rows))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def _numbers(c: Counts, open_rows: int) -> list[str]:
    ends = (c.sent, c.written, c.empty, c.quarantined, c.discarded, c.lost, c.steps, open_rows)
    return [f"{number:,}" for number in ends]


def _size(nbytes: int) -> str:
    """Return bytes as people read them."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
