"""Stores filled from RLDS datasets.

No TensorFlow is needed for a dataset's directory; a ``tf.data.Dataset`` is taken, too. Episodes
are read one by one, so that a dataset may be larger than memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from string import printable
from typing import Any

import numpy as np

from agentlace.codec import Chunk
from agentlace.data.columns import leaves_of, map_leaves
from agentlace.data.data_store import DataStoreBase, QueuedDataStore, put
from agentlace.data.jaxrl_data_store import ReplayBufferDataStore, make_default_trajectory_buffer
from agentlace.data.sampled_store import SampledStore
from agentlace.data.steps import KNOWN, Pairs, count, pair, stacked
from agentlace.data.trajectory_ring import TrajectoryRing
from agentlace.errors import DecodeError, MissingExtra
from agentlace.rlds.episode import STATE, Episode
from agentlace.rlds.reader import DatasetReader

DataTransform = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]

ENDS = {"trajectory_buffer": "end_of_trajectory", "with_dones": "dones"}
"""Under which name a transition tells that it is the last of its episode, by ``type``."""
TYPES = ("replay_buffer", "trajectory_buffer", "queued_datastore", "with_dones")
TEXT_MAX = 256
"""So many characters of a text are stored in a buffer."""


def make_datastore(
    dataset_dir: str | os.PathLike[str],
    capacity: int,
    type: str = "replay_buffer",
    data_transform: DataTransform | None = None,
) -> DataStoreBase:
    """Return a store with the transitions of an RLDS dataset, whose shapes are the dataset's.

    Args:
        dataset_dir: ``<data_dir>/<name>/<version>``; all its splits are read.
        capacity: in transitions; of a larger dataset the last ones stay.
        type: ``replay_buffer`` gives a :class:`ReplayBufferDataStore`, and so does ``with_dones``,
            whose transitions have ``dones`` too; ``trajectory_buffer`` what
            :func:`make_default_trajectory_buffer` returns; ``queued_datastore`` a queue.
        data_transform: see :func:`populate_datastore`.

    Raises:
        ValueError: there is no such type.
        FileNotFoundError: there is no dataset.
        DecodeError: the dataset is damaged, empty, or no RLDS.
        MissingExtra: what reads it is not installed.
        SchemaMismatch: what ``data_transform`` returns does not fit the store.
    """
    if type not in TYPES:
        raise ValueError(f"type={type!r} is none of {', '.join(TYPES)}")
    episodes = DatasetReader(dataset_dir).episodes()
    first = next(episodes, None)
    if first is None:
        raise DecodeError(f"the dataset in {dataset_dir} has no episodes")
    datastore = _store_for(columns_of(first), capacity, type)
    populate_datastore(datastore, chain([first], episodes), type, data_transform)
    return datastore


def _store_for(steps: Mapping[str, Any], capacity: int, type: str) -> DataStoreBase:
    """Return an empty store for transitions of such steps."""
    if type == "queued_datastore":
        return QueuedDataStore(capacity)
    observations, actions = space_of(steps["observation"]), space_of(steps["action"])
    if type == "trajectory_buffer":
        return make_default_trajectory_buffer(observations, actions, capacity)
    return ReplayBufferDataStore(observations, actions, capacity)


def populate_datastore(
    datastore: Any,
    dataset: Iterable[Any],
    type: str | None = None,
    data_transform: DataTransform | None = None,
) -> Any:
    """Insert the transitions of RLDS episodes into a store; they count as preloaded.

    A transition is a dict with ``observations``, ``next_observations``, ``actions``, ``rewards``
    (float32) and ``masks`` (float32, 0 where the episode terminated, 1 where it was cut short).
    An episode of N + 1 steps gives N of them.

    Args:
        datastore: any store; a trajectory buffer ends its trajectory with each episode.
        dataset: a ``tf.data.Dataset`` of episodes, or anything that yields them: an
            :class:`~agentlace.rlds.episode.Episode`, or a mapping whose ``steps`` yield mappings
            or are a mapping of columns. Tensors and arrays are taken.
        type: ``trajectory_buffer`` adds ``end_of_trajectory`` and ``with_dones`` adds ``dones``
            to each transition. A trajectory buffer needs no type.
        data_transform: called with each transition and what else is known of it: ``step``, the
            number of the step at which it begins, ``step_size``, how many steps the episode has,
            and that step's other entries, such as ``language_instruction``. What it returns is
            inserted; None leaves the transition out.

    Returns:
        The store.

    Raises:
        ValueError: there is no such type.
        DecodeError: the episodes have no steps, or these no observations or actions.
        SchemaMismatch: a transition does not fit the store; those before were inserted.
    """
    if type is not None and type not in TYPES:
        raise ValueError(f"type={type!r} is none of {', '.join(TYPES)}")
    is_ring = isinstance(datastore, TrajectoryRing)
    ends = {ENDS[type]} if type in ENDS else set()
    ends |= {ENDS["trajectory_buffer"]} if is_ring else set()
    is_sampled = isinstance(datastore, SampledStore)
    with datastore.preloading() if is_sampled else nullcontext():
        for steps in step_columns(dataset):
            pairs = _named(pair(steps), ends)
            if data_transform is None:
                _insert_all(datastore, pairs)
            else:
                _insert_transformed(datastore, pairs, steps, data_transform)
            if is_ring:
                datastore.end_trajectory()
    return datastore


def _named(pairs: Pairs, ends: Iterable[str]) -> Pairs:
    """Return the transitions with their ends under these names only."""
    columns = dict(pairs.columns)
    last = columns.pop("dones")
    return Pairs(columns | dict.fromkeys(ends, last), pairs.at)


def _insert_all(datastore: Any, pairs: Pairs) -> None:
    kinds = "".join(_kind(column) for _, column in leaves_of(pairs.columns))
    for refused in put(datastore, Chunk(len(pairs.at), pairs.columns, {}, kinds)).values():
        raise refused


def _kind(column: Any) -> str:
    """Return what the rows of a column are, as a chunk says it: arrays or numpy scalars."""
    return "s" if column.ndim == 1 and column.dtype.kind not in "SU" else "a"


def _insert_transformed(
    datastore: Any, pairs: Pairs, steps: Mapping[str, Any], transform: DataTransform
) -> None:
    others = {key: column for key, column in steps.items() if key not in KNOWN}
    size = count(steps)
    for i, step in enumerate(pairs.at.tolist()):
        data = map_leaves(lambda column, i=i: column[i], pairs.columns)
        more = map_leaves(lambda column, step=step: column[step], others)
        transformed = transform(data, {**more, "step": step, "step_size": size})
        if transformed is not None:
            datastore.insert(transformed)
        elif isinstance(datastore, TrajectoryRing):
            datastore.end_trajectory()  # what comes next does not follow what came before


def step_columns(dataset: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the steps of each episode as :func:`columns_of` does, but for those without any."""
    return (columns for columns in map(columns_of, dataset) if columns)


def columns_of(episode: Any) -> dict[str, Any]:
    """Return the steps of one episode as columns of numpy arrays.

    Raises:
        DecodeError: it is no episode.
    """
    if isinstance(episode, Episode):
        columns = stacked(episode.steps)
        if episode.bare_observation:
            columns["observation"] = columns["observation"][STATE]
        return columns
    if not isinstance(episode, Mapping) or "steps" not in episode:
        known = sorted(episode) if isinstance(episode, Mapping) else type(episode).__name__
        raise DecodeError(f"an episode of RLDS has 'steps', but this one is {known}")
    steps = episode["steps"]
    if isinstance(steps, Mapping):
        values: dict[str, Any] = get_value_from_tensor(steps)
        return values
    steps = getattr(steps, "as_numpy_iterator", steps.__iter__)()
    return stacked(get_value_from_tensor(step) for step in steps)


def space_of(columns: Any) -> Any:
    """Return the Gymnasium space of what is in columns, see :func:`tensor_spec_to_gym_space`."""
    one = map_leaves(lambda column: np.empty(column.shape[1:], column.dtype), columns)
    return tensor_spec_to_gym_space(one)


def tensor_spec_to_gym_space(tensor_spec: Any) -> Any:
    """Return the Gymnasium space of a ``tf.TensorSpec``, or of a dict of them.

    Anything with ``shape`` and ``dtype`` will do. Numbers give a Box over their dtype's range,
    texts a Text space of up to 256 characters.

    Raises:
        TypeError: it is something else, or its shape is not fixed.
        MissingExtra: Gymnasium is not installed.
    """
    try:
        from gymnasium import spaces
    except ImportError as error:
        raise MissingExtra("gymnasium", "gym") from error
    if isinstance(tensor_spec, Mapping):
        return spaces.Dict({k: tensor_spec_to_gym_space(v) for k, v in tensor_spec.items()})
    if not hasattr(tensor_spec, "shape") or not hasattr(tensor_spec, "dtype"):
        raise TypeError(f"a {type(tensor_spec).__name__} has no shape and dtype to make a space of")
    shape, dtype = tuple(tensor_spec.shape), _dtype_of(tensor_spec)
    if None in shape:
        raise TypeError(
            f"{tensor_spec} has no fixed shape: fill a store of your own with populate_datastore "
            "and a data_transform that gives it one"
        )
    if dtype.kind in "OSU":
        return spaces.Text(TEXT_MAX, min_length=0, charset=printable)
    if dtype.kind == "b":
        return spaces.Box(0, 1, shape, dtype)
    if dtype.kind in "iu":
        return spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype)
    return spaces.Box(-np.inf, np.inf, shape, dtype)


def _dtype_of(spec: Any) -> np.dtype[Any]:
    """Return the numpy dtype of a spec of TensorFlow's, of TFDS', or of numpy's kind."""
    dtype = getattr(spec, "np_dtype", None) or spec.dtype
    found: np.dtype[Any] = np.dtype(getattr(dtype, "as_numpy_dtype", dtype))
    return found


def get_value_from_tensor(tensor: Any) -> Any:
    """Return the numpy value of a tensor, or of each in a dict; of a text tensor, its text."""
    if isinstance(tensor, Mapping):
        return {key: get_value_from_tensor(value) for key, value in tensor.items()}
    value = tensor.numpy() if hasattr(tensor, "numpy") else tensor
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
        texts = [_text(item) for item in value.ravel().tolist()]
        if all(isinstance(text, str) for text in texts):
            return np.array(texts, str).reshape(value.shape)
    return value


def _text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:  # bytes of another kind, such as an encoded image
        return value
