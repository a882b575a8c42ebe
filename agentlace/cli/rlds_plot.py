"""Draws what a dataset holds: lengths, returns, endings, and frames of a few episodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agentlace.errors import MissingExtra

if TYPE_CHECKING:
    from agentlace.rlds.episode import Episode
    from agentlace.rlds.reader import DatasetReader
    from agentlace.rlds.summary import Summary

EPISODES, FRAMES = 4, 6
"""Rows and columns of the contact sheet."""


def draw(reader: DatasetReader, summary: Summary, path: Path) -> None:
    """Draw a dataset.

    Args:
        reader: of the dataset, whose images are read for the contact sheet.
        summary: of the same dataset.
        path: of the PNG file; replaced if it exists.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "examples") from error
    sheet = contact_sheet(reader)
    figure = Figure(figsize=(12, 3 if sheet is None else 3 + 2 * len(sheet)), layout="constrained")
    FigureCanvasAgg(figure)
    if sheet is None:
        _histograms(figure, summary)
    else:
        parts: Any = figure.subfigures(2, 1, height_ratios=(3, 2 * len(sheet)))
        above, below = parts
        _histograms(above, summary)
        _frames(below, sheet)
    figure.savefig(path, format="png", dpi=100)


def _histograms(figure: Any, summary: Summary) -> None:
    lengths, returns, endings = figure.subplots(1, 3)
    lengths.hist(summary.lengths, bins="auto")
    lengths.set(xlabel="steps", ylabel="episodes")
    returns.hist(summary.returns, bins="auto")
    returns.set(xlabel="return")
    endings.bar(list(summary.endings), list(summary.endings.values()))
    endings.set(xlabel="ended")
    figure.suptitle(f"{summary.name} {summary.version}: {summary.episodes:,} episodes")


def contact_sheet(reader: DatasetReader) -> list[tuple[str, list[np.ndarray[Any, Any]]]] | None:
    """Return titles and frames, evenly spaced over episodes and their steps; None without any.

    Each frame is uint8 (height, width, channels). An episode's cameras are side by side.
    """
    total = len(reader)
    if not total:
        return None
    sheet = []
    for number in sorted({int(n) for n in np.linspace(0, total - 1, EPISODES)}):
        episode = next(iter(reader.episodes(start=number)))
        steps = sorted({int(n) for n in np.linspace(0, len(episode) - 1, FRAMES)})
        frames = [frame for n in steps if (frame := _cameras(episode, n)) is not None]
        if not frames:
            return None
        sheet.append((f"episode {number}, {episode.ending}", frames))
    return sheet


def _cameras(episode: Episode, number: int) -> np.ndarray[Any, Any] | None:
    from agentlace.rlds.images import is_image
    from agentlace.rlds.leaf import flat

    leaves = [np.asarray(v) for v in flat(episode.steps[number]["observation"]).values()]
    frames = [a.reshape(a.shape[-3:]) for a in leaves if is_image(a.shape, a.dtype)]
    colours = [_rgb(frame) for frame in frames]
    if not colours:
        return None
    height = max(len(frame) for frame in colours)
    filled = [np.pad(f, ((0, height - len(f)), (0, 0), (0, 0))) for f in colours]
    return np.concatenate(filled, axis=1)


def _rgb(frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if frame.dtype != np.uint8:
        frame = (frame / max(1, frame.max()) * 255).astype(np.uint8)
    return np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[..., :3]


def _frames(figure: Any, sheet: list[tuple[str, list[np.ndarray[Any, Any]]]]) -> None:
    places = figure.subplots(len(sheet), FRAMES, squeeze=False)
    for row, (title, frames) in zip(places, sheet, strict=True):
        row[0].set_title(title, loc="left", fontsize="small")
        for place in row:
            place.set_axis_off()
        for place, frame in zip(row, frames, strict=False):
            place.imshow(frame)
