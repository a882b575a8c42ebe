"""``agentlace rlds convert``: a dataset in another format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from agentlace.cli.progress import shown
from agentlace.data.lerobot_format import to_lerobot
from agentlace.data.minari_format import from_minari, to_minari
from agentlace.errors import AgentlaceError, DecodeError
from agentlace.progress import counted
from agentlace.rlds.episode import Episode
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.writer import DatasetWriter

COMMIT_BYTES = 64 << 20
"""So much waits in memory until it is written."""


class Format(str, Enum):
    """Formats other than RLDS."""

    minari = "minari"
    lerobot = "lerobot"


class Source(str, Enum):
    """Formats other than RLDS that can be read."""

    minari = "minari"


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", show_default=False)],
    to: Annotated[
        Format | None, typer.Option("--to", help="SOURCE is a folder of RLDS.", show_default=False)
    ] = None,
    source_format: Annotated[
        Source | None,
        typer.Option("--from", help="TARGET becomes a folder of RLDS.", show_default=False),
    ] = None,
    version: Annotated[str, typer.Option(help="Of the RLDS dataset that is written.")] = "1.0.0",
    fps: Annotated[
        int | None, typer.Option(help="Frames per second, for LeRobot.", min=1, show_default=False)
    ] = None,
    task: Annotated[
        str, typer.Option(help="For LeRobot, where steps have no language_instruction.")
    ] = "",
    video: Annotated[
        bool, typer.Option("--video", help="For LeRobot: images as video, with loss.")
    ] = False,
) -> None:
    """Convert an RLDS dataset to Minari or LeRobot, or one of Minari to RLDS.

    A dataset of Minari is named by its ID, such as cube/demos-v0. One of LeRobot is a folder, and
    so is one of RLDS: DATA_DIR/NAME/1.0.0 to be read, DATA_DIR/NAME to be written. Nothing is
    replaced. Images stay as they are, unless --video is given.
    """
    if (to is None) == (source_format is None):
        raise AgentlaceError("pass either --to or --from: the format that is not RLDS")
    if to is Format.lerobot and fps is None:
        raise AgentlaceError("LeRobot needs to know the frames per second: pass --fps")
    reader = None if to is None else DatasetReader(source)
    total = None if reader is None else len(reader)
    with shown(f"converting {source}", total, "episodes") as advance:
        episodes = counted(from_minari(source) if reader is None else reader.episodes(), advance)
        if to is None:
            written = _to_rlds(episodes, Path(target), version)
        elif to is Format.minari:
            written = _to_minari(episodes, target)
        else:
            assert fps is not None
            written = to_lerobot(episodes, target, fps, Path(target).name, task, video)
    typer.echo(f"{written:,} episodes in {target}")


def _to_minari(episodes: Iterable[Episode], target: str) -> int:
    try:
        return to_minari(episodes, target)
    except (TypeError, ValueError) as error:
        raise AgentlaceError(f"{target} cannot be written: {error}") from error


def _to_rlds(episodes: Iterable[Episode], folder: Path, version: str) -> int:
    """Write a new dataset.

    Raises:
        AgentlaceError: it exists.
        DecodeError: there are no episodes.
    """
    with DatasetWriter(folder.parent, folder.name, version) as writer:
        if writer.episodes:
            raise AgentlaceError(f"{writer.directory} has {writer.episodes:,} episodes already")
        for episode in _not_none(episodes):
            writer.append(episode)
            if writer.pending_nbytes > COMMIT_BYTES:
                writer.commit()
        writer.commit()
        writer.join()
        return writer.episodes


def _not_none(episodes: Iterable[Episode]) -> Iterator[Episode]:
    iterator = iter(episodes)
    first = next(iterator, None)
    if first is None:
        raise DecodeError("there are no episodes to write")
    return itertools.chain([first], iterator)
