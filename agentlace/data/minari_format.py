"""RLDS episodes ⇄ a Minari dataset. Images stay as they are: nothing is encoded with loss."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from agentlace.data.columns import leaves_of, map_leaves
from agentlace.data.steps import count, pair
from agentlace.data.tfds import columns_of, space_of
from agentlace.errors import DecodeError, MissingExtra
from agentlace.rlds.episode import (
    ENDINGS,
    NOT_EXTRA,
    STEP_KEYS,
    Ending,
    Episode,
    episode_from_transitions,
)

log = logging.getLogger(__name__)

FORMAT = "arrow"
"""Of Minari's formats, the one whose library the extra ``minari`` installs."""
ENDING = "rlds_ending"
METADATA = "rlds_metadata"
"""Entries of a Minari episode's metadata."""
KINDS = frozenset("biufSU")
"""Kinds of dtypes that are carried over beside observations and actions."""


def to_minari(episodes: Iterable[Episode], dataset_id: str) -> int:
    """Write episodes as a new Minari dataset on this machine.

    Spaces are those of the first episode's arrays, unbounded. Further entries of steps, such as
    ``language_instruction``, become ``infos``. An episode that was aborted counts as truncated.
    One episode at a time is in memory. If it fails, nothing stays.

    Args:
        episodes: with observations and actions of fixed shapes.
        dataset_id: as Minari has it: ``(namespace/)(env_name/)dataset_name(-v0)``.

    Returns:
        The number of episodes.

    Raises:
        MissingExtra: Minari is not installed.
        DecodeError: there are no episodes.
        ValueError: there is such a dataset already, or that is no ID for one.
    """
    minari = _minari()
    iterator = iter(episodes)
    first = next(iterator, None)
    if first is None:
        raise DecodeError("there are no episodes to write")
    columns = pair(columns_of(first)).columns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari's advice to name author and code
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            [],
            observation_space=space_of(columns["observations"]),
            action_space=space_of(columns["actions"]),
            data_format=FORMAT,
            jpeg_encoding=False,
        )
    try:
        for number, episode in enumerate(chain([first], iterator)):
            dataset.storage.update_episodes([_buffer_of(minari, episode, number)])
            known = {ENDING: episode.ending, METADATA: map_leaves(_plain, dict(episode.metadata))}
            dataset.storage.update_episode_metadata([known], [number])
    except BaseException:
        shutil.rmtree(dataset.storage.data_path.parent)
        raise
    return number + 1


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise MissingExtra("minari", "minari") from error
    return minari


def _buffer_of(minari: Any, episode: Episode, number: int) -> Any:
    steps = columns_of(episode)
    columns = pair(steps).columns
    n = len(columns["rewards"])
    if n != count(steps) - 1:
        raise DecodeError(f"episode {number} has a last step that is not its last")
    terminations, truncations = np.zeros(n, bool), np.zeros(n, bool)
    terminations[-1:] = columns["masks"][-1:] == 0
    truncations[-1:] = ~terminations[-1:]
    return minari.data_collector.EpisodeBuffer(
        id=number,
        observations=map_leaves(_listed_texts, steps["observation"]),
        actions=map_leaves(_listed_texts, columns["actions"]),
        rewards=columns["rewards"],
        terminations=terminations,
        truncations=truncations,
        infos=_infos(steps),
    )


def _infos(steps: Mapping[str, Any]) -> dict[str, Any] | None:
    others = {key: value for key, value in steps.items() if key not in STEP_KEYS}
    # Minari cannot read back an array whose rows are scalars, but it can a list of them.
    return map_leaves(lambda a: list(a) if a.ndim == 1 else a, others) or None


def _listed_texts(column: Any) -> Any:
    return column.tolist() if column.dtype.kind in "SU" else column


def _plain(value: Any) -> Any:
    """Return what JSON can hold."""
    value = np.asarray(value)
    return value.astype(str).tolist() if value.dtype.kind in "S" else value.tolist()


def from_minari(dataset: Any) -> Iterator[Episode]:
    """Yield the episodes of a Minari dataset.

    An episode that did not terminate counts as truncated if Minari says so, else as aborted.
    Of ``infos``, arrays and texts that each step has are kept as entries of steps.

    Args:
        dataset: a ``minari.MinariDataset``, or the name of one on this machine.

    Raises:
        MissingExtra: Minari is not installed.
        FileNotFoundError: there is no such dataset.
    """
    if isinstance(dataset, str):
        dataset = _minari().load_dataset(dataset)
    for episode in dataset.iterate_episodes():
        (known,) = dataset.storage.get_episode_metadata([episode.id])
        yield _episode_of(episode, known)


def _episode_of(episode: Any, known: Mapping[str, Any]) -> Episode:
    columns = {
        "observations": map_leaves(np.asarray, episode.observations),
        "actions": map_leaves(np.asarray, episode.actions),
        "rewards": np.asarray(episode.rewards, np.float32),
    }
    n = len(columns["rewards"])
    extras = _extras(episode.infos or {}, n)
    rows = [
        {
            "next_observations": map_leaves(lambda a, i=i: a[i + 1], columns["observations"]),
            **map_leaves(lambda a, i=i: a[i], columns | extras),
        }
        for i in range(n)
    ]
    metadata = map_leaves(_unlisted, known.get(METADATA, {"minari_id": int(episode.id)}))
    return episode_from_transitions(rows, _ending(episode, known), metadata)


def _unlisted(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, list) else value


def _ending(episode: Any, known: Mapping[str, Any]) -> Ending:
    if known.get(ENDING) in ENDINGS:
        ending: Ending = known[ENDING]
        return ending
    if len(episode.terminations) and episode.terminations[-1]:
        return "terminated"
    return "truncated" if len(episode.truncations) and episode.truncations[-1] else "aborted"


def _extras(infos: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return what all steps have of Minari's infos, as columns of ``n`` rows."""
    found: dict[str, Any] = {}
    for key, value in infos.items():
        columns = map_leaves(np.asarray, value)
        fit = [len(a) >= n and a.dtype.kind in KINDS for _, a in leaves_of(columns) if a.ndim]
        if key in STEP_KEYS | NOT_EXTRA or not fit or not all(fit):
            log.info("left out %r of the infos: not an entry of each step", key)
        else:
            found[key] = map_leaves(lambda a: a[:n], columns)
    return found
