"""Features as TFDS has them; the only module that imports tensorflow_datasets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.errors import DecodeError, MissingExtra
from agentlace.rlds.features import ENDING, OTHER, Features
from agentlace.rlds.leaf import Leaf, nested


def load_tfds() -> Any:
    """Return tensorflow_datasets, which does not import TensorFlow by itself.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise MissingExtra("tensorflow-datasets", "rlds") from error
    return tensorflow_datasets


def example_proto() -> Any:
    """Return the class of ``tf.train.Example`` that TFDS brings along."""
    load_tfds()
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def features_file(features: Features) -> bytes:
    """Return what ``features.json`` holds: the same in TFDS' words."""
    from google.protobuf import json_format

    content = json_format.MessageToDict(tfds_features(features).to_proto())
    return json.dumps(content, indent=4, sort_keys=True).encode()


def tfds_features(features: Features) -> Any:
    """Return features as a ``FeaturesDict``."""
    kinds = load_tfds().features
    steps = {path: _feature(kinds, leaf) for path, leaf in features.steps.items()}
    metadata = {path: _feature(kinds, leaf) for path, leaf in features.metadata.items()}
    metadata.update({ENDING: kinds.Text(), OTHER: kinds.Text()})
    tree = {
        "steps": kinds.Dataset(_dicts(kinds, nested(steps))),
        "episode_metadata": _dicts(kinds, nested(metadata)),
    }
    return kinds.FeaturesDict(tree)


def _dicts(kinds: Any, tree: Mapping[str, Any]) -> Any:
    inner = {k: _dicts(kinds, v) if isinstance(v, dict) else v for k, v in tree.items()}
    return kinds.FeaturesDict(inner)


def _feature(kinds: Any, leaf: Leaf) -> Any:
    shape = leaf.stored_shape
    if leaf.kind == "image":
        dtype = np.dtype(leaf.stored_dtype)
        return kinds.Image(shape=shape, dtype=dtype, encoding_format=leaf.encoding)
    if leaf.kind == "text" and shape == ():
        return kinds.Text()
    if leaf.kind in ("text", "bytes"):
        return kinds.Tensor(shape=shape, dtype=np.object_)
    return kinds.Tensor(shape=shape, dtype=np.dtype(leaf.stored_dtype), encoding=leaf.encoding)


def read_features(directory: str | os.PathLike[str]) -> Any:
    """Return the features of any dataset as TFDS has them.

    Raises:
        FileNotFoundError: there is no ``features.json``.
        DecodeError: TFDS cannot make sense of it.
    """
    kinds = load_tfds().features
    try:
        return kinds.FeatureConnector.from_config(os.fspath(directory))
    except OSError:
        raise
    except Exception as error:  # whatever TFDS says about a file that it did not write
        reason = f"{type(error).__name__}: {error}"
        raise DecodeError(f"{directory} has features that TFDS cannot read: {reason}") from error


def nested_features(features: Any, path: str = "") -> dict[str, str]:
    """Return a dataset's features by path, each in TFDS' words on one line."""
    inner = getattr(features, "feature", features) if _is_dataset(features) else features
    if not hasattr(inner, "items"):
        return {path: " ".join(repr(inner).split())}
    found: dict[str, str] = {}
    for key, value in sorted(inner.items()):
        found.update(nested_features(value, f"{path}/{key}".lstrip("/")))
    return found


def _is_dataset(features: Any) -> bool:
    return isinstance(features, load_tfds().features.Dataset)
