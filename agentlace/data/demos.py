"""Demonstrations from files, loaded into a store in advance."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.archive import archive_path, replace_file
from agentlace.data.columns import Array, leaves_of, map_leaves, nested
from agentlace.data.data_store import put
from agentlace.data.sampled_store import SampledStore
from agentlace.data.steps import pair
from agentlace.data.tfds import step_columns
from agentlace.errors import DecodeError, MissingExtra
from agentlace.progress import Advance, Logged, counted
from agentlace.rlds.reader import DatasetReader

log = logging.getLogger(__name__)

CHUNK_ROWS = 1024
"""So many transitions are inserted at a time."""


def save_demos(path: str | os.PathLike[str], rows: list[Any]) -> None:
    """Save transitions, dicts of equal structure, as ``load_demos`` reads them.

    Args:
        path: of the ``.npz`` file; that ending is added if it is missing.
        rows: one or more transitions, in their order.
    """
    columns = map_leaves(lambda *values: np.stack(values), *rows)
    save_columns(path, leaves_of(columns))


def save_columns(path: str | os.PathLike[str], columns: Iterable[tuple[str, Array]]) -> None:
    """Save transitions as columns, each with its path, whole or not at all.

    Columns are taken one after the other, so that they need not be in memory together.
    """

    def write(file: IO[bytes]) -> None:
        # As np.savez, but that keeps some names to itself, such as "file".
        with zipfile.ZipFile(file, "w") as archive:
            for name, column in columns:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, column, allow_pickle=False)

    replace_file(archive_path(path), write)


def load_demos(store: SampledStore, path: str | os.PathLike[str]) -> int:
    """Insert the transitions of an ``.npz`` file; they count as preloaded.

    Args:
        store: takes them.
        path: of a file of one array per leaf, named by its path (``observations/wrist``), whose
            first dimension counts the transitions. Objects (pickle) are refused.

    Returns:
        The number of transitions.

    Raises:
        FileNotFoundError: there is no such file.
        DecodeError: it is no such file.
        SchemaMismatch: the transitions do not fit the store; none beyond were inserted.
    """
    columns = _read_archive(path)
    lengths = {len(leaf) if leaf.ndim else -1 for leaf in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise DecodeError(f"{path} does not hold arrays of one length")
    (n,) = lengths
    return _insert(store, nested(columns), n, _loading(path, n, "transitions"))


def _read_archive(path: str | os.PathLike[str]) -> dict[str, Array]:
    try:
        with open(archive_path(path), "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DecodeError(f"{path} is not an archive of arrays: {error}") from error


def load_minari(store: SampledStore, dataset: Any) -> int:
    """Insert the episodes of a Minari dataset; they count as preloaded.

    Args:
        store: takes transitions with ``observations``, ``next_observations``, ``actions``,
            ``rewards`` (float32), ``masks`` (float32, 0 where the episode terminated) and
            ``dones``.
        dataset: a ``minari.MinariDataset``, or the name of one on this machine.

    Returns:
        The number of transitions.

    Raises:
        MissingExtra: a name is given and Minari is not installed.
        SchemaMismatch: the transitions do not fit the store.
    """
    if isinstance(dataset, str):
        try:
            import minari
        except ImportError as error:
            raise MissingExtra("minari", "minari") from error
        dataset = minari.load_dataset(dataset)
    return sum(_insert(store, *_of_episode(episode)) for episode in dataset.iterate_episodes())


def load_rlds(store: SampledStore, dataset: str | os.PathLike[str] | Iterable[Any]) -> int:
    """Insert the episodes of an RLDS dataset; they count as preloaded.

    One episode at a time is in memory.

    Args:
        store: takes transitions as :func:`load_minari` makes them.
        dataset: its folder, ``<data_dir>/<name>/<version>``, or episodes as
            :func:`~agentlace.data.tfds.populate_datastore` takes them.

    Returns:
        The number of transitions.

    Raises:
        FileNotFoundError: there is no such dataset.
        DecodeError: it is damaged, or no RLDS.
        MissingExtra: what reads it is not installed.
        SchemaMismatch: the transitions do not fit the store; none beyond were inserted.
    """
    if isinstance(dataset, str | os.PathLike):
        reader = DatasetReader(dataset)
        dataset = counted(reader.episodes(), _loading(dataset, len(reader), "episodes"))
    episodes = (pair(steps) for steps in step_columns(dataset))
    return sum(_insert(store, episode.columns, len(episode.at)) for episode in episodes)


def _of_episode(episode: Any) -> tuple[dict[str, Any], int]:
    """Return an episode's transitions as columns: it has one observation more than actions."""
    observations = map_leaves(np.asarray, episode.observations)
    terminated = np.asarray(episode.terminations, bool)
    ends = terminated | np.asarray(episode.truncations, bool)
    if len(ends):
        ends[-1] = True  # what follows is another episode, whatever this one says
    columns = {
        "observations": map_leaves(lambda a: a[:-1], observations),
        "next_observations": map_leaves(lambda a: a[1:], observations),
        "actions": map_leaves(np.asarray, episode.actions),
        "rewards": np.asarray(episode.rewards, np.float32),
        "masks": (~terminated).astype(np.float32),
        "dones": ends,
    }
    return columns, len(ends)


def _loading(path: object, n: int, unit: str) -> Logged:
    return Logged(log, f"loading {path}", n, unit, level=logging.WARNING)


def _insert(
    store: SampledStore, columns: Mapping[str, Any], n: int, advance: Advance = lambda n: None
) -> int:
    with store.preloading():
        for start in range(0, n, CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, n))
            kinds = "a" * len(list(leaves_of(columns)))
            chunk = Chunk(part.stop - start, map_leaves(lambda a, p=part: a[p], columns), {}, kinds)
            for refused in put(store, chunk).values():
                raise refused
            advance(part.stop - start)
    return n
