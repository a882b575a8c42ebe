"""Reads datasets with TensorFlow and compares them; a program of its own, since TensorFlow is slow.

``killed DIR…`` reads datasets of ``support.episode``, and prints how often each number was there.
"""

import collections
import json
import sys

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

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
        yield with_texts(metadata), with_texts(step)


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
        assert_same(step, as_stored(wanted.steps[at]), f"{number}")
        at += 1
    assert at == len(wanted)
    print(json.dumps(counts))


if __name__ == "__main__":
    tf.config.threading.set_inter_op_parallelism_threads(2)
    {"killed": killed}[sys.argv[1]](sys.argv[2:])
