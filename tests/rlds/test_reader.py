"""Everything that goes into a dataset comes out of it, with and without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from agentlace.errors import DecodeError
from agentlace.rlds.episode import ENDINGS, episode_from_transitions
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.tfds import load_tfds
from agentlace.rlds.tfrecord import framed
from agentlace.rlds.verify import verify
from agentlace.rlds.writer import DatasetWriter
from tests.rlds.support import assert_same, assert_same_episode, episode


def everything(rng):
    """A leaf of every kind that a dataset can hold."""
    return {
        "f16": np.float16(rng.normal()),
        "f32": rng.normal(size=(2, 3)).astype(np.float32),
        "f64": rng.normal(size=3),
        "double": rng.normal(),
        **{
            f"{kind}{bits}": rng.integers(
                *_range(f"{kind}{bits}"), size=2, dtype=f"{kind}{bits}", endpoint=True
            )
            for kind in ("int", "uint")
            for bits in (8, 16, 32, 64)
        },
        "u64": np.uint64(2**64 - 1),
        "flag": np.bool_(rng.integers(2)),
        "flags": rng.integers(2, size=(2, 2)).astype(bool),
        "many": rng.integers(-9, 9, size=(9, 9)),
        "stack": rng.integers(256, size=(3, 8, 8, 3), dtype=np.uint8),
        "text": f"über {rng.integers(9)}",
        "texts": np.array(["a", f"b{rng.integers(9)}"]),
        "bytes": bytes(rng.integers(256, size=4, dtype=np.uint8)) + b"\0",
        "cameras": {
            "rgb": rng.integers(256, size=(8, 9, 3), dtype=np.uint8),
            "one": rng.integers(256, size=(1, 1, 9, 8, 3), dtype=np.uint8),
            "rgba": rng.integers(256, size=(8, 8, 4), dtype=np.uint8),
            "gray": rng.integers(256, size=(8, 8, 1), dtype=np.uint8),
            "depth": rng.integers(1 << 16, size=(8, 8, 1), dtype=np.uint16),
        },
        "rgb": rng.integers(256, size=(16, 8, 3), dtype=np.uint8),
        "depth": rng.integers(1 << 16, size=(8, 16, 1), dtype=np.uint16),
    }


def _range(name):
    info = np.iinfo(name)
    return info.min, info.max


def episodes_of_everything(n=3):
    found = []
    for number in range(n):
        rng = np.random.default_rng(number)
        observations = [everything(rng) for _ in range(number + 3)]
        rows = [
            {
                "observations": observations[i],
                "actions": {"arm": rng.normal(size=(2, 2)), "grip": np.int64(rng.integers(3))},
                "next_observations": observations[i + 1],
                "rewards": np.float32(rng.normal()),
                "extra": {"deep": {"er": rng.normal(size=2).astype(np.float32)}},
            }
            for i in range(number + 2)
        ]
        found.append(episode_from_transitions(rows, ENDINGS[number], {"n": number, "d": 0.1}))
    return found


def bare_episodes():
    """Bare observations, discrete actions."""
    rows = [
        {"observations": np.float64(i), "next_observations": np.float64(i + 1), "actions": i}
        for i in range(3)
    ]
    return [episode_from_transitions(rows, ending) for ending in ENDINGS]


def write(data_dir, name, episodes, **options):
    with DatasetWriter(data_dir, name, **options) as writer:
        for one in episodes:
            writer.append(one)
            writer.commit()
    return writer.directory


def plain(step):
    """A step as it comes back: Python's numbers as numpy's."""
    if isinstance(step, dict):
        return {key: plain(value) for key, value in step.items()}
    return step if isinstance(step, str | bytes) else np.asarray(step)


@pytest.mark.parametrize("make", [episodes_of_everything, bare_episodes])
def test_what_goes_in_comes_out(tmp_path, make):
    wanted = make()
    reader = DatasetReader(write(tmp_path, "some", wanted))
    found = list(reader.episodes())
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.ending, mine.bare_observation) == (theirs.ending, theirs.bare_observation)
        assert dict(mine.metadata) == theirs.metadata
        for a, b in zip(mine.steps, theirs.steps, strict=True):
            assert_same(a, plain(b))
    assert verify(reader).problems == []


def test_tensorflow_reads_the_same(tmp_path):
    paths = [
        write(tmp_path, "everything", episodes_of_everything()),
        write(tmp_path, "lossy", episodes_of_everything(1), image_format="jpeg"),
        write(tmp_path, "bare", bare_episodes()),
    ]
    command = [sys.executable, "-m", "tests.rlds.tensorflow_reader", "compare", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["12 steps", "3 steps", "12 steps"]


def test_jpeg_is_close(tmp_path):
    y, x = np.mgrid[0:32, 0:32]
    image = np.stack([x * 8, y * 8, (x + y) * 4], -1).astype(np.uint8)
    row = {"observations": {"x": image}, "next_observations": {"x": image}, "actions": 0}
    one = episode_from_transitions([row], "truncated")
    (found,) = DatasetReader(write(tmp_path, "some", [one], image_format="jpeg")).episodes()
    shown = found.steps[0]["observation"]["x"].astype(int)
    assert 0 < np.abs(shown - image).max() and np.abs(shown - image).mean() < 4


def test_reading_may_begin_anywhere(tmp_path):
    directory = write(tmp_path, "some", [episode(n) for n in range(5)])
    with DatasetWriter(tmp_path, "some") as writer:
        for number in range(5, 9):
            writer.append(episode(number))
        writer.commit()
    reader = DatasetReader(directory)
    assert (len(reader), reader.splits, reader.name, reader.version) == (
        9,
        {"train": 9},
        "some",
        "1.0.0",
    )
    for start in range(10):
        found = list(reader.episodes("train", start))
        assert len(found) == 9 - start
        if found:
            assert_same_episode(found[0], episode(start))
    with pytest.raises(ValueError, match=r"no split 'test' in .*: there is train"):
        next(reader.episodes("test"))


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no dataset in .*: name the folder of a version"):
        DatasetReader(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DecodeError, match="TFDS cannot read"):
        DatasetReader(tmp_path)


def test_damage_is_told_where_it_is(tmp_path):
    directory = write(tmp_path, "some", [episode(0), episode(1)])
    path = DatasetReader(directory).shards[1].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = DatasetReader(directory).episodes()
    assert_same_episode(next(found), episode(0))
    with pytest.raises(DecodeError, match=r"tfrecord-00001: the record at byte 0 is damaged"):
        next(found)


def write_as_others(directory, steps_feature, steps, format="tfrecord", **top):
    """Write a dataset with TFDS alone, as others have it; no TensorFlow."""
    kinds = load_tfds().features
    features = kinds.FeaturesDict({"steps": steps_feature, **{k: kinds.Text() for k in top}})
    directory.mkdir(parents=True)
    features.save_config(str(directory))
    record = features.serialize_example({"steps": steps, **top})
    (directory / "their-val.tfrecord-00000-of-00001").write_bytes(b"".join(framed(record)))
    split = '{"name": "val", "shardLengths": ["1"], "numBytes": "1"}'
    info = f'{{"name": "their", "version": "2.0.0", "fileFormat": "{format}", "splits": [{split}]}}'
    (directory / "dataset_info.json").write_text(info)
    return directory


def test_datasets_of_others_are_read(tmp_path):
    kinds = load_tfds().features
    step = {
        "observation": kinds.FeaturesDict(
            {
                "image": kinds.Image(shape=(8, 8, 3)),
                "state": kinds.Tensor(shape=(2,), dtype=np.float32),
            }
        ),
        "action": kinds.Tensor(shape=(3,), dtype=np.float32),
        "is_terminal": kinds.Tensor(shape=(), dtype=np.bool_),
        "language_instruction": kinds.Text(),
    }
    rng = np.random.default_rng(0)
    image = np.zeros((8, 8, 3), np.uint8)
    import cv2

    encoded = cv2.imencode(".png", image)[1].tobytes()
    steps = [
        {
            "observation": {"image": encoded, "state": rng.normal(size=2).astype(np.float32)},
            "action": np.ones(3, np.float32),
            "is_terminal": i == 1,
            "language_instruction": "go",
        }
        for i in range(2)
    ]
    directory = write_as_others(tmp_path / "x", kinds.Dataset(step), steps, name="robot")
    reader = DatasetReader(directory)
    assert reader.manifest is None and reader.splits == {"val": 1}
    (found,) = reader.episodes()
    assert found.ending == "terminated" and not found.bare_observation
    assert [float(s["reward"]) for s in found.steps] == [0, 0]
    assert [float(s["discount"]) for s in found.steps] == [1, 1]
    assert [bool(s["is_first"]) for s in found.steps] == [True, False]
    assert [bool(s["is_last"]) for s in found.steps] == [False, True]
    assert found.steps[0]["language_instruction"] == "go"
    assert np.array_equal(found.steps[0]["observation"]["image"], image)
    assert len(found.transitions()) == 1
    assert verify(reader).problems == []


def test_a_dataset_of_others_without_steps_or_in_other_files(tmp_path):
    kinds = load_tfds().features
    directory = write_as_others(tmp_path / "x", kinds.Text(), "no steps")
    (directory / "features.json").write_text(
        (directory / "features.json").read_text().replace('"steps"', '"other"')
    )
    with pytest.raises(DecodeError, match="no RLDS: its examples have no steps"):
        DatasetReader(directory)
    other = write_as_others(tmp_path / "y", kinds.Text(), "no steps", "array_record")
    with pytest.raises(DecodeError, match="has array_record files: only tfrecord"):
        DatasetReader(other)
