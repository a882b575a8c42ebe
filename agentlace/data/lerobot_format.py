"""RLDS episodes to a LeRobot dataset (v3), written by LeRobot's own library.

That library brings PyTorch and pins versions of its own, so this runs in an environment of its
own: ``pip install 'lerobot[dataset]' 'agentlace[rlds]'``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from agentlace.data.columns import Array, leaves_of, map_leaves
from agentlace.data.steps import KNOWN, pair
from agentlace.data.tfds import columns_of
from agentlace.errors import AgentlaceError, DecodeError
from agentlace.rlds.episode import STATE, STEP_KEYS, Episode

TASK = "language_instruction"
"""The entry of a step that says what is to be done."""
HINT = "LeRobot needs an environment of its own: pip install 'lerobot[dataset]' 'agentlace[rlds]'"


def to_lerobot(
    episodes: Iterable[Episode],
    folder: str | os.PathLike[str],
    fps: int,
    repo_id: str = "local/agentlace",
    task: str = "",
    video: bool = False,
) -> int:
    """Write episodes as a new LeRobot dataset.

    An episode of N transitions becomes N frames: LeRobot has no last observation. Observations
    become ``observation.<name>``, images of three channels ``observation.images.<name>``, the
    action ``action``, and what it brought ``next.reward``, ``next.done`` and ``next.truncated``.
    ``language_instruction`` is the task; further numbers become ``complementary_info.<name>``.
    One episode at a time is in memory. If it fails, nothing stays.

    Args:
        episodes: with observations and actions of fixed shapes.
        folder: must not exist.
        fps: frames per second; RLDS does not tell.
        repo_id: how LeRobot calls the dataset.
        task: of steps that have no ``language_instruction``.
        video: encode images as video, small and with loss; else each is a PNG.

    Returns:
        The number of episodes.

    Raises:
        AgentlaceError: LeRobot is not installed here.
        FileExistsError: the folder exists.
        DecodeError: there are no episodes.
    """
    kind = _lerobot()
    dataset, written = None, 0
    try:
        for episode in episodes:
            columns, tasks = _frames(episode, task)
            if dataset is None:
                features = {n: _feature(n, c, video) for n, c in columns.items()}
                dataset = kind.create(repo_id, fps, features, root=folder, use_videos=video)
            for i, what in enumerate(tasks):
                frame = {name: column[i] for name, column in columns.items()}
                dataset.add_frame({**frame, "task": what})
            dataset.save_episode()
            written += 1
    except BaseException:
        if dataset is not None:
            with contextlib.suppress(Exception):
                dataset.finalize()  # else it writes again when it is collected
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if dataset is None:
        raise DecodeError("there are no episodes to write")
    dataset.finalize()
    return written


def _lerobot() -> Any:
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        raise AgentlaceError(f"{HINT} ({error})") from error
    return LeRobotDataset


def _frames(episode: Episode, task: str) -> tuple[dict[str, Array], list[str]]:
    """Return an episode's frames as columns by LeRobot's names, and each frame's task."""
    steps = columns_of(episode)
    columns, at = pair(steps)
    frames = dict(_observations(columns["observations"]))
    for path, column in leaves_of(columns["actions"]):
        frames[f"action.{_dotted(path)}" if path else "action"] = _at_least_1d(column)
    frames["next.reward"] = columns["rewards"][:, None]
    frames["next.done"] = columns["dones"][:, None]
    frames["next.truncated"] = (columns["dones"] & (columns["masks"] != 0))[:, None]
    others = {k: v for k, v in steps.items() if k not in KNOWN | STEP_KEYS | {TASK}}
    for path, column in leaves_of(map_leaves(lambda column: column[at], others)):
        if column.dtype.kind in "biuf":
            frames[f"complementary_info.{_dotted(path)}"] = _at_least_1d(column)
    told = steps.get(TASK)
    return frames, [task if told is None else str(told[i]) for i in at]


def _observations(tree: Any) -> Iterator[tuple[str, Array]]:
    for path, column in leaves_of(tree):
        name = _dotted(path) or STATE
        if column.dtype.kind not in "biuf":
            continue
        if column.dtype == np.uint8 and column.ndim > 4:  # (1, height, width, 3), as SERL has them
            column = column.reshape(len(column), *column.shape[-3:])
        if _is_image(column):
            yield f"observation.images.{name.removeprefix('images.')}", column
        else:
            yield f"observation.{name}", _at_least_1d(column)


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _is_image(column: Array) -> bool:
    return column.dtype == np.uint8 and column.ndim == 4 and column.shape[-1] == 3


def _at_least_1d(column: Array) -> Array:
    return column[:, None] if column.ndim == 1 else column


def _feature(name: str, column: Array, video: bool) -> Mapping[str, Any]:
    if name.startswith("observation.images."):
        axes = ["height", "width", "channels"]
        kind = "video" if video else "image"
        return {"dtype": kind, "shape": column.shape[1:], "names": axes}
    return {"dtype": str(column.dtype), "shape": column.shape[1:], "names": None}
