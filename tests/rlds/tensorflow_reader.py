"""Reads datasets with TensorFlow and compares them; a program of its own, since TensorFlow is slow.

``killed DIR…`` reads datasets of ``support.episode``, and prints how often each number was there;
``compare DIR…`` compares with what is read without TensorFlow.
"""

import collections
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.tfrecord import read_records
from tests.rlds.support import ENDINGS, assert_same, episode

PLAIN = tfds.ReadConfig(interleave_cycle_length=1)


def with_texts(tree):
    """Return a tree with str for text."""
    if isinstance(tree, dict):
        return {key: with_texts(value) for key, value in tree.items()}
    return tree.decode() if isinstance(tree, bytes) else tree


def as_stored(step):
    """Return a step as the dataset has it."""
    observation = dict(step["observation"], wrist=step["observation"]["wrist"][0])
    action = np.asarray(step["action"], np.float32).reshape(-1)
    version = np.int64(step["policy_version"])
    kept = dict(step, observation=observation, action=action, policy_version=version)
    for key in ("is_first", "is_last", "is_terminal"):
        kept[key] = np.bool_(step[key])
    return dict(kept, wall_time_ns=np.int64(step["wall_time_ns"]))


def flat_steps(dataset):
    """Yield all steps of all episodes as numpy, each with its episode's metadata.

    In one pipeline: an iterator for each episode's steps takes long.
    """

    def with_metadata(found):
        return found["steps"].map(lambda step: (found["episode_metadata"], step))

    for metadata, step in dataset.flat_map(with_metadata).as_numpy_iterator():
        yield with_texts(metadata), step


def killed(paths):
    builder = tfds.builder_from_directories(paths)
    counts, at, wanted = collections.Counter(), 0, None
    for metadata, step in flat_steps(builder.as_dataset(split="train", read_config=PLAIN)):
        number = int(metadata["number"])
        if step["is_first"]:
            assert wanted is None or at == len(wanted)
            counts[number] += 1
            at, wanted = 0, episode(number)
            assert metadata["ending"] == ENDINGS[number % 3]
            assert metadata["actor"] == wanted.metadata["actor"]
        assert_same(with_texts(step), as_stored(wanted.steps[at]), f"{number}")
        at += 1
    assert at == len(wanted)
    print(json.dumps(counts))


def compare(paths):
    """Compare what TensorFlow reads with what TFDS reads without it, and how OXE loaders do."""
    for path in paths:
        builder = tfds.builder_from_directory(path)
        steps = [
            step for _, step in flat_steps(builder.as_dataset(split="train", read_config=PLAIN))
        ]
        features, wanted = builder.info.features, []
        for shard in DatasetReader(path).shards:
            for record in read_records(shard.path):
                source = features.deserialize_example_np(record)["steps"]
                wanted += [source[i] for i in range(len(source))]
        assert len(steps) == len(wanted) > 0
        for i, (mine, theirs) in enumerate(zip(steps, wanted, strict=True)):
            if builder.info.name != "lossy":  # decoders of JPEG round differently
                assert_same(mine, theirs, f"step {i}")
        as_oxe(builder, steps)
        print(f"{len(steps)} steps", flush=True)


def as_oxe(builder, steps):
    """Read as Octo and Open-X loaders do: by name, episodes as columns, images decoded later."""
    name, version = builder.info.name, str(builder.info.version)
    root = Path(builder.data_dir).parents[1]
    by_name = tfds.builder(f"{name}:{version}", data_dir=root)
    decoders = {"steps": tfds.decode.SkipDecoding()}
    dataset = by_name.as_dataset(split="train", decoders=decoders, read_config=PLAIN)
    kinds, found = by_name.info.features["steps"]["observation"], 0
    for trajectory in dataset.as_numpy_iterator():
        columns = trajectory["steps"]
        for i in range(len(columns["is_first"])):
            step = steps[found]
            assert columns["is_last"][i] == step["is_last"]
            if isinstance(step["action"], np.ndarray):
                assert_same(columns["action"][i], step["action"])
            for key, values in columns["observation"].items():
                if isinstance(kinds[key], tfds.features.Image):
                    image = tf.io.decode_image(values[i], dtype=step["observation"][key].dtype)
                    assert_same(image.numpy(), step["observation"][key], key)
            found += 1
    assert found == len(steps)


if __name__ == "__main__":
    tf.config.threading.set_inter_op_parallelism_threads(2)
    {"killed": killed, "compare": compare}[sys.argv[1]](sys.argv[2:])
