"""What TensorFlow reads of our datasets, and what we read of those of others.

The only module of these tests that imports TensorFlow.
"""

import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from agentlace.data import QueuedDataStore
from agentlace.data.tfds import (
    get_value_from_tensor,
    make_datastore,
    populate_datastore,
    tensor_spec_to_gym_space,
)
from agentlace.rlds.writer import DatasetWriter

from .rlds_episodes import ENDINGS, check_transition, episodes, expected, observation

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own
LENGTHS = (5, 1, 3, 8)


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def tfds(tf):
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def dataset(tmp_path):
    with DatasetWriter(tmp_path, "cube") as writer:
        for one in episodes(LENGTHS):
            writer.append(one)
        writer.commit()
        return writer.directory


def steps_of(e, n, observe):
    """An episode as programs write it that know only RLDS."""
    return [
        {
            "observation": observe(e, t),
            "action": np.float32([e, -t] if t < n else [0, 0]),
            "reward": np.float32(e + t / 8 if t < n else 0),
            "discount": np.float32(t < n),
            "is_first": t == 0,
            "is_last": t == n,
            "is_terminal": t == n and ENDINGS[e % 3] == "terminated",
        }
        for t in range(n + 1)
    ]


def write_with_tfds(tfds, folder, observation_features, observe):
    """Write a dataset as envlogger and the earlier library did, with TFDS' own writer."""
    from tensorflow_datasets.core import SequentialWriter, Version, dataset_info
    from tensorflow_datasets.rlds import rlds_base

    action = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    number = tfds.features.Scalar(np.float32)
    config = rlds_base.DatasetConfig(
        name="plain",
        observation_info=observation_features,
        action_info=action,
        reward_info=number,
        discount_info=number,
    )
    identity = dataset_info.DatasetIdentity(
        name="plain", version=Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    writer = SequentialWriter(rlds_base.build_info(config, identity), 2, overwrite=False)
    writer.initialize_splits(["train"])
    for e, n in enumerate(LENGTHS):
        writer.add_examples({"train": [{"steps": steps_of(e, n, observe)}]})
    writer.close_all()
    return folder


def check(store, lengths=LENGTHS):
    rows = store.get_latest_data(-1)
    for row, (e, t, _, mask) in zip(rows, expected(lengths), strict=True):
        check_transition(row, e, t, mask)


def test_what_tfds_reads_of_ours_makes_the_same_store(tfds, dataset):
    read = tfds.builder_from_directory(dataset).as_dataset(split="train")
    seen = []

    def transform(data, metadata):
        seen.append((metadata["language_instruction"], metadata["step"], metadata["step_size"]))
        return data

    check(populate_datastore(QueuedDataStore(99), read))
    check(populate_datastore(QueuedDataStore(99), read, None, transform))
    check(populate_datastore(QueuedDataStore(99), tfds.as_numpy(read)))
    check(make_datastore(dataset, 99))
    assert seen == [(f"lift cube {e}", t, LENGTHS[e] + 1) for e, t, *_ in expected(LENGTHS)]


@pytest.mark.parametrize("type", ["replay_buffer", "trajectory_buffer", "with_dones"])
def test_what_others_wrote_becomes_a_store(tfds, tmp_path, type):
    image = tfds.features.Image(shape=(32, 40, 3))
    state = tfds.features.Tensor(shape=(3,), dtype=np.float32)
    features = tfds.features.FeaturesDict({"state": state, "wrist": image})
    folder = write_with_tfds(tfds, tmp_path, features, observation)
    store = make_datastore(folder, 99, type)
    rows = store.get_latest_data(-1)
    wanted = [w for w in expected(LENGTHS) if type != "trajectory_buffer" or LENGTHS[w[0]] > 1]
    for row, (e, t, is_last, mask) in zip(rows, wanted, strict=True):
        check_transition(row, e, t, mask)
        if type != "replay_buffer":
            assert row["dones" if type == "with_dones" else "end_of_trajectory"] == is_last
    read = tfds.builder_from_directory(folder).as_dataset("train")
    check(populate_datastore(QueuedDataStore(99), read))


def test_bare_observations_of_others_stay_bare(tfds, tmp_path):
    def observe(e, t):
        return np.float32([e, t])

    vector = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    folder = write_with_tfds(tfds, tmp_path, vector, observe)
    rows = make_datastore(folder, 99).get_latest_data(-1)
    seen = [row["observations"].tolist() for row in rows]
    assert seen == [[e, t] for e, t, *_ in expected(LENGTHS)]


def frames_as_octo_reads_them(tf, tfds, folder):
    """Read as the loaders of Octo, OpenVLA and others do, which build on dlimp.

    Steps come undecoded, as columns; a transform makes trajectories of one kind of all datasets;
    images are decoded only then, frame by frame.
    """
    read = tfds.builder_from_directory(str(folder)).as_dataset(
        split="train",
        shuffle_files=False,
        decoders={"steps": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(skip_prefetch=True, interleave_cycle_length=1),
    )

    def with_metadata(number, episode):
        steps = dict(episode.pop("steps"))
        n = tf.shape(tf.nest.flatten(steps)[0])[0]
        metadata = tf.nest.map_structure(lambda value: tf.repeat(value, n), episode)
        return {**steps, "traj_metadata": metadata, "_traj_index": tf.repeat(number, n)}

    def standardised(trajectory):
        return {
            "observation": {
                "image_primary": trajectory["observation"]["wrist"],
                "proprio": tf.cast(trajectory["observation"]["state"], tf.float32),
            },
            "task": {"language_instruction": trajectory["language_instruction"]},
            "action": tf.cast(trajectory["action"], tf.float32),
            **{k: trajectory[k] for k in ("is_first", "is_last", "is_terminal", "reward")},
            "robot": trajectory["traj_metadata"]["episode_metadata"]["robot"],
            "number": trajectory["_traj_index"],
        }

    def decoded(frame):
        image = tf.io.decode_image(frame["observation"]["image_primary"], expand_animations=False)
        frame["observation"]["image_primary"] = image
        return frame

    trajectories = read.enumerate().map(with_metadata).map(standardised)
    frames = trajectories.flat_map(tf.data.Dataset.from_tensor_slices).map(decoded)
    return list(frames.as_numpy_iterator())


def test_a_loader_of_the_open_x_kind_reads_every_frame(tf, tfds, dataset):
    frames = frames_as_octo_reads_them(tf, tfds, dataset)
    wanted = [(e, t, n) for e, n in enumerate(LENGTHS) for t in range(n + 1)]
    for frame, (e, t, n) in zip(frames, wanted, strict=True):
        seen = observation(e, t)
        assert np.array_equal(frame["observation"]["image_primary"], seen["wrist"])
        assert np.array_equal(frame["observation"]["proprio"], seen["state"])
        assert frame["action"].tolist() == ([e, -t] if t < n else [0, 0])
        assert frame["reward"] == (e + t / 8 if t < n else 0) and frame["number"] == e
        assert frame["task"]["language_instruction"].decode() == f"lift cube {e}"
        assert frame["robot"].decode() == f"arm {e}"
        flags = (frame["is_first"], frame["is_last"], frame["is_terminal"])
        assert flags == (t == 0, t == n, t == n and ENDINGS[e % 3] == "terminated")


def test_the_loader_in_the_docs(tf, tfds, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "rlds.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name in ("record.py", "loader.py"):
        (source,) = re.findall(rf"```python\n# {name}\n(.*?)```", text, re.DOTALL)
        Path(name).write_text(source)
        runpy.run_path(name)
    assert capsys.readouterr().out == "data/cube/1.0.0\n22 frames; 1 terminal\n"


def test_spaces_and_values_of_tensors(tf):
    spaces = pytest.importorskip("gymnasium").spaces
    space = tensor_spec_to_gym_space(
        {"x": tf.TensorSpec((2,), tf.float32), "d": {"i": tf.TensorSpec((), tf.int64)}}
    )
    assert space["x"] == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert space["d"]["i"].shape == () and space["d"]["i"].dtype == np.int64
    assert isinstance(tensor_spec_to_gym_space(tf.TensorSpec((), tf.string)), spaces.Text)
    with pytest.raises(TypeError, match="no fixed shape"):
        tensor_spec_to_gym_space(tf.TensorSpec((None, 2), tf.float32))
    value = get_value_from_tensor({"t": tf.constant("Grüße"), "x": tf.constant([1.0, 2.0])})
    assert value["t"] == "Grüße" and value["x"].tolist() == [1, 2]
    assert value["x"].dtype == np.float32
