"""A saved trajectory buffer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from agentlace.data.archive import load_archive, save_archive
from agentlace.data.columns import Array
from agentlace.data.episodes import Episodes
from agentlace.errors import DecodeError

Priorities = Mapping[str, Mapping[str, Array]]


class SavedTrajectories(NamedTuple):
    """What a file holds.

    Attributes:
        data: the rows, by name.
        rows: how many there are.
        episodes: the book of the trajectories.
        priorities: of each sample config that had any.
        state: further plain values.
    """

    data: dict[str, Array]
    rows: int
    episodes: Episodes
    priorities: dict[str, dict[str, Array]]
    state: dict[str, Any]


def save_trajectories(
    path: str | os.PathLike[str],
    episodes: Episodes,
    dataset: Mapping[str, Any],
    priorities: Priorities,
    state: Mapping[str, Any],
) -> None:
    """Save a buffer, whole or not at all."""
    n = min(episodes.claimed, episodes.capacity)
    arrays = {f"data/{name}": np.asarray(array)[:n] for name, array in dataset.items()}
    arrays |= {f"metadata/{name}": array[:n] for name, array in episodes.metadata.items()}
    arrays["arrived"] = episodes.arrived[:n]
    for config, kept in priorities.items():
        arrays |= {f"priorities/{config}/{name}": array for name, array in kept.items()}
    save_archive(path, arrays, {**state, "episodes": episodes.state(), "rows": n})


def load_trajectories(path: str | os.PathLike[str]) -> SavedTrajectories:
    """Return what :func:`save_trajectories` saved.

    Raises:
        FileNotFoundError: there is no such file.
        DecodeError: the file is damaged, or something else.
    """
    arrays, state = load_archive(path)
    priorities: dict[str, dict[str, Array]] = {}
    for name, array in _part(arrays, "priorities/").items():
        config, _, key = name.rpartition("/")
        priorities.setdefault(config, {})[key] = array
    try:
        metadata = _part(arrays, "metadata/")
        episodes = Episodes.of(state.pop("episodes"), metadata, arrays["arrived"])
        data, rows = _part(arrays, "data/"), state.pop("rows")
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"{path} is not a saved trajectory buffer: {error}") from error
    return SavedTrajectories(data, rows, episodes, priorities, state)


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
