"""What a dataset can hold, what it refuses, and how it says so."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from agentlace.errors import DecodeError, SchemaMismatch
from agentlace.rlds.episode import Episode, episode_from_transitions
from agentlace.rlds.features import Features
from agentlace.rlds.records import encode_episode
from agentlace.rlds.tfds import tfds_features
from tests.rlds.support import episode, transitions


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def one(observation, action=0, **more):
    """An episode of one transition."""
    row = {"observations": observation, "next_observations": observation, "actions": action}
    return episode_from_transitions([{**row, **more}], "truncated")


def leaf(value, key="x"):
    return Features.from_episode(one({key: value})).steps[f"observation/{key}"]


@pytest.mark.parametrize(
    ("shape", "dtype", "stored"),
    [
        ((8, 9, 3), np.uint8, (8, 9, 3)),
        ((1, 8, 9, 3), np.uint8, (8, 9, 3)),
        ((1, 1, 8, 9, 1), np.uint8, (8, 9, 1)),
        ((8, 9, 4), np.uint8, (8, 9, 4)),
        ((8, 9, 1), np.uint16, (8, 9, 1)),
    ],
)
def test_what_is_an_image(shape, dtype, stored):
    found = leaf(np.zeros(shape, dtype))
    assert (found.kind, found.encoding, found.stored_shape) == ("image", "png", stored)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 8, 9, 3), np.uint8), ((8, 9), np.uint8), ((8, 9, 3), np.int32), ((7, 9, 3), np.uint8)],
)
def test_what_is_no_image(shape, dtype):
    found = leaf(np.zeros(shape, dtype))
    assert (found.kind, found.encoding, found.stored_shape) == ("number", "zlib", shape)


def test_jpeg_is_for_images_that_it_can_hold():
    images = {
        "rgb": np.zeros((8, 8, 3), np.uint8),
        "rgba": np.zeros((8, 8, 4), np.uint8),
        "depth": np.zeros((8, 8, 1), np.uint16),
    }
    steps = Features.from_episode(one(images), "jpeg").steps
    found = {key: steps[f"observation/{key}"].encoding for key in images}
    assert found == {"rgb": "jpeg", "rgba": "png", "depth": "png"}


@pytest.mark.parametrize(
    ("action", "shape", "dtype"),
    [
        (np.zeros((2, 3)), (6,), "float32"),
        (np.zeros((), np.float64), (1,), "float32"),
        (np.int64(3), (), "int64"),
        (np.zeros(2, np.int32), (2,), "int32"),
    ],
)
def test_float_actions_are_flat_vectors(action, shape, dtype):
    found = Features.from_episode(one(0, action)).steps["action"]
    assert (found.stored_shape, found.stored_dtype) == (shape, dtype)


def test_features_come_back_from_json():
    features = Features.from_episode(episode(0), "jpeg")
    assert Features.from_json(json.loads(json.dumps(features.to_json()))) == features
    with pytest.raises(DecodeError, match="not a description"):
        Features.from_json({"steps": 3})


def test_features_of_spaces():
    spaces = pytest.importorskip("gymnasium").spaces
    space = spaces.Dict(
        {
            "box": spaces.Box(-1, 1, (3,)),
            "camera": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "pair": spaces.Tuple([spaces.Discrete(4), spaces.MultiBinary(2)]),
            "text": spaces.Text(9),
        }
    )
    features = Features.from_spaces(space, spaces.Discrete(3))
    sample = dict(space.sample())
    found = features.completed(one(sample, np.int64(1), language_instruction="go"))
    assert found == Features.from_episode(one(sample, np.int64(1), language_instruction="go"))
    bare = Features.from_spaces(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    assert bare.bare_observation and bare.steps["observation/state"].shape == (3,)
    for bad in (spaces.Sequence(spaces.Discrete(2)), spaces.OneOf([spaces.Discrete(2)])):
        with pytest.raises(SchemaMismatch, match=r"observation/x: a \w+ has no fixed shape"):
            Features.from_spaces(spaces.Dict({"x": bad}), spaces.Discrete(2))


def test_spaces_decide_over_the_first_episode(threads):
    spaces = pytest.importorskip("gymnasium").spaces
    features = Features.from_spaces(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    wrong = one(np.zeros(4, np.float32), np.zeros(2, np.float32))
    with pytest.raises(SchemaMismatch, match=r"observation/state: shape \(4,\).*\(3,\)"):
        encode_episode(features.completed(wrong), wrong, threads)
    other = one({"y": 0}, np.zeros(2, np.float32))
    with pytest.raises(SchemaMismatch, match="observation"):
        encode_episode(features.completed(other), other, threads)


@pytest.mark.parametrize("bad", [object(), None, 1j, [1, "a", None], [[1], [2, 3]], np.zeros(0)])
def test_what_no_dataset_can_hold(bad):
    with pytest.raises(SchemaMismatch, match="observation/x"):
        leaf(bad)


@pytest.mark.parametrize("key", ["a/b", ""])
def test_keys_that_are_no_path(key):
    with pytest.raises(SchemaMismatch, match="key"):
        leaf(1, key)


def misfit(change):
    """Return what is said about an episode with one step changed, against episode(0)'s features."""
    features = Features.from_episode(episode(0))
    steps = [dict(step) for step in episode(0).steps]
    change(steps[1])
    changed = Episode(steps, "terminated", {})
    with ThreadPoolExecutor(1) as threads, pytest.raises(SchemaMismatch) as raised:
        encode_episode(features, changed, threads)
    return str(raised.value)


def test_a_misfit_is_named_with_its_place_and_both_shapes():
    def observe(**values):
        return lambda step: step.update(observation={**step["observation"], **values})

    assert "steps/1/observation/joints: shape (4,), the dataset has (3,)" in misfit(
        observe(joints=np.zeros(4))
    )
    assert "steps/1/observation/wrist: dtype float32, the dataset has uint8" in misfit(
        observe(wrist=np.zeros((1, 16, 16, 3), np.float32))
    )
    assert "steps/1/observation/wrist: a value of int64 that does not fit" in misfit(
        observe(wrist=np.full((1, 16, 16, 3), 256))
    )
    assert "steps/1/observation/new: unknown to the dataset, which has action" in misfit(
        observe(new=1)
    )
    assert "steps/1/is_intervention: missing, but part of the dataset" in misfit(
        lambda step: step.pop("is_intervention")
    )
    assert "steps/1/language_instruction: dtype int64, the dataset has str" in misfit(
        lambda step: step.update(language_instruction=3)
    )
    assert "steps/1/language_instruction: bytes, the dataset has str" in misfit(
        lambda step: step.update(language_instruction=b"x")
    )


def test_a_bare_observation_is_no_dict(threads):
    features = Features.from_episode(one({"state": 1.0}))
    with pytest.raises(SchemaMismatch, match="observation: is an array, the dataset has a dict"):
        encode_episode(features, one(1.0), threads)


def test_numbers_that_can_be_cast_are(threads):
    features = Features.from_episode(one({"x": np.zeros(2, np.float32), "n": np.int32(1)}))
    record = encode_episode(features, one({"x": np.ones(2), "n": 7}), threads)
    found = tfds_features(features).deserialize_example_np(record)["steps"][0]["observation"]
    assert found["x"].dtype == np.float32 and found["x"].tolist() == [1, 1] and found["n"] == 7
    with pytest.raises(SchemaMismatch, match="observation/n: a value of int64 that does not fit"):
        encode_episode(features, one({"x": np.ones(2), "n": 1 << 40}), threads)


def test_given_features_are_compared_with_those_of_a_dataset():
    mine, same = Features.from_episode(episode(0)), Features.from_episode(episode(1))
    mine.check_same(same)
    rows = transitions(0)
    for row in rows:
        row["actions"] = np.zeros(9, np.float32)
    other = Features.from_episode(episode_from_transitions(rows, "truncated"))
    with pytest.raises(SchemaMismatch, match=r"action: float32 \(9,\) none, the dataset has"):
        other.check_same(mine)
    fewer = Features.from_episode(one({"state": np.zeros((1, 5), np.float32)}))
    with pytest.raises(SchemaMismatch, match="is in the dataset, but not"):
        fewer.check_same(mine)
    with pytest.raises(SchemaMismatch, match="is in the features given, but not"):
        mine.check_same(fewer)
