"""The trajectory buffer: which rows may be sampled, in numpy and in JAX, and keeping it all."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlace import DecodeError, SchemaMismatch
from agentlace.data.sampler import (
    FutureSampler,
    LatestSampler,
    PrioritySampler,
    SequenceSampler,
)
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer

from .support import same
from .trajectories import SHAPES, Account, step

ALL = {name: LatestSampler() for name in ("observations", "actions", "number", "episode")}


def make(capacity, min_length=2, **kwargs):
    buffer = TrajectoryBuffer(capacity, SHAPES, min_trajectory_length=min_length, **kwargs)
    buffer.register_sample_config("all", ALL)
    return buffer


def fill(buffer, lengths, account=None, ended=True):
    """Insert trajectories of these lengths, the last of which may stay in progress."""
    number = 0
    for episode, length in enumerate(lengths):
        for _ in range(length):
            buffer.insert(step(number, episode))
            if account:
                account.add(number, episode)
            number += 1
        if ended or episode < len(lengths) - 1:
            buffer.end_trajectory()
            if account:
                account.end()
    return buffer


def everything(buffer, config="all"):
    """Return all rows that may be sampled, in their order."""
    rows = np.arange(buffer._sample_begin_idx, buffer._sample_end_idx)
    return rows, *buffer.sample(config, 0, force_indices=rows)


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(8, 40),
    min_length=st.integers(1, 4),
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=14),
    ended=st.booleans(),
)
def test_the_rows_that_may_be_sampled(capacity, min_length, lengths, ended):
    account = Account(capacity, min_length)
    buffer = fill(make(capacity, min_length), lengths, account, ended)
    expected = account.may_be_sampled()
    rows, data, mask = everything(buffer)
    assert rows.tolist() == sorted(expected)
    assert all(valid.all() for valid in mask.values())
    for i, row in enumerate(rows.tolist()):
        stored = {name: leaf[i] for name, leaf in data.items() if name != "observations"}
        stored["observations"] = {"state": data["observations"]["state"][i]}
        assert same(stored, step(*account.rows[row]))
        begin, end = buffer._episodes.bounds(np.array([row]), (rows[0], rows[-1] + 1))
        assert (int(begin[0]), int(end[0])) == expected[row]
    if len(rows):
        drawn, _ = buffer.sample("all", 50)
        assert set(drawn["number"].tolist()) <= set(data["number"].tolist())
    else:
        with pytest.raises(ValueError, match="long enough"):
            buffer.sample("all", 1)


def test_the_worked_example():
    buffer = fill(make(100, 3), [10] * 10 + [8])
    assert (buffer._sample_begin_idx, buffer._sample_end_idx) == (10, 108)
    assert buffer._insert_idx == 108 and len(buffer) == 100
    assert buffer.metadata.keys() == {
        "ep_begin",
        "ep_end",
        "trajectory_id",
        "trajectory_begin_flag",
        "seq_id",
    }
    assert buffer.metadata["ep_begin"][[7, 10, 99]].tolist() == [100, 10, 90]
    assert buffer.metadata["ep_end"][[7, 10, 99]].tolist() == [108, 20, 100]
    assert buffer.metadata["trajectory_id"][[7, 10, 99]].tolist() == [10, 1, 9]
    assert np.flatnonzero(buffer.metadata["trajectory_begin_flag"]).tolist() == [
        *range(0, 100, 10),
    ]
    assert buffer.metadata["seq_id"][:8].tolist() == list(range(100, 108))


def test_the_minimum_can_be_set_while_a_trajectory_is_in_progress():
    buffer = fill(make(20, 2), [5, 3], ended=False)
    assert buffer._sample_end_idx == 8
    buffer._trajectory.min_length = 4
    buffer.end_trajectory()
    assert (buffer._insert_idx, buffer._sample_end_idx) == (5, 5)


def test_an_entry_in_the_data_tells_the_end_and_the_dict_stays_as_it_is():
    buffer = make(20)
    for i in range(3):
        row = step(i, 0, end_of_trajectory=np.bool_(i == 2))
        buffer.insert(row)
        assert "end_of_trajectory" in row
    assert buffer._trajectory.begin_idx == 3
    buffer.insert(step(3, 1), True)
    assert buffer._insert_idx == 3


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({**step(1, 0), "actions": np.zeros(3, np.int32)}, "actions"),
        ({**step(1, 0), "number": 0.5}, "number"),
        ({**step(1, 0), "observations": {}}, "observations/state"),
        (step(1, 0, reward=1.0), "reward"),
    ],
)
def test_a_misfit_is_refused_whole(row, path):
    buffer = fill(make(10), [3])
    before = {name: array.copy() for name, array in buffer.dataset.items()}
    with pytest.raises(SchemaMismatch) as caught:
        buffer.insert(row, True)
    assert caught.value.path == path
    assert buffer._insert_idx == 3 and same(buffer.dataset, before)


# -- what is drawn ---------------------------------------------------------------------------------


def test_only_rows_that_fit_are_drawn_and_each_as_often():
    buffer = fill(make(100, 3), [10, 20, 30], ended=False)
    buffer.register_sample_config("inner", {"number": LatestSampler()}, (-1, 2))
    data, mask = buffer.sample("inner", 20_000)
    numbers, counts = np.unique(data["number"], return_counts=True)
    assert numbers.tolist() == [*range(1, 9), *range(11, 29), *range(31, 59)]
    assert 280 < counts.min() and counts.max() < 470  # 370 expected, 19 the deviation
    assert mask["number"].all()


def test_forced_rows_are_moved_to_where_they_fit():
    buffer = fill(make(100, 3), [10, 10])
    buffer.register_sample_config("inner", {"number": LatestSampler()}, (-1, 2))
    data, _ = buffer.sample("inner", 3, force_indices=[0, 5, 9, 10])
    assert data["number"].tolist() == [1, 5, 8, 11]


def test_samples_are_copies_and_reproducible():
    one, other = (fill(make(50, seed=3), [20, 20, 30]) for _ in range(2))
    data, _ = one.sample("all", 40)
    again, _ = other.sample("all", 40)
    assert same(data, again)
    data["number"][:] = -1
    assert one.sample("all", 100)[0]["number"].min() >= 0


def test_a_transform_makes_the_sample():
    buffer = fill(make(20), [10])
    buffer.register_sample_config(
        "own", {"number": LatestSampler()}, transform=lambda data, mask: (data["number"] + 1, mask)
    )
    data, _ = buffer.sample("own", 2, force_indices=[3, 4])
    assert data.tolist() == [4, 5]


def test_configs_that_cannot_be():
    buffer = make(20, 2)
    for bad in [(0, 0), (1, 0), (0, 3)]:
        with pytest.raises(ValueError, match="sample_range"):
            buffer.register_sample_config("bad", ALL, bad)
    with pytest.raises(ValueError, match="nothing is stored as 'reward'"):
        buffer.register_sample_config("bad", {"reward": LatestSampler()})
    with pytest.raises(ValueError, match="one PrioritySampler"):
        buffer.register_sample_config("bad", {"a": PrioritySampler(), "b": PrioritySampler()})
    with pytest.raises(ValueError, match="no sample config 'bad'; there are: all"):
        buffer.sample("bad", 1)


# -- in JAX ----------------------------------------------------------------------------------------


def rich(buffer):
    buffer.register_sample_config(
        "rich",
        {
            "observations": SequenceSampler(begin=-2, end=2),
            "actions": SequenceSampler(begin=0, end=4),
            "goal": FutureSampler(source="observations/state"),
            "later": FutureSampler(
                FutureSampler.Distribution.EXPONENTIAL, lambda_=3.0, source="number"
            ),
            "priority": PrioritySampler(alpha=0.5, beta=0.5),
        },
        (0, 2),
    )
    return buffer


def test_numpy_and_jax_return_the_same():
    jax = pytest.importorskip("jax")
    lengths = [5, 1, 9, 20, 2, 13]
    ours = rich(fill(make(30), lengths, ended=False))
    theirs = rich(fill(make(30, use_jax=True), lengths, ended=False))
    ours._configs["rich"].priority.update_priorities(np.arange(25, 40), np.arange(15.0))
    theirs._configs["rich"].priority.update_priorities(jax.numpy.arange(25, 40), np.arange(15.0))
    for forced in (None, np.arange(20, 48), None):
        mine, his = (b.sample("rich", 64, force_indices=forced) for b in (ours, theirs))
        flat, _ = jax.tree_util.tree_flatten(his)
        assert all(isinstance(leaf, jax.Array) for leaf in flat)
        for a, b in zip(jax.tree_util.tree_leaves(mine), flat, strict=True):
            assert np.array_equal(a, np.asarray(b))
            assert b.dtype == jax.dtypes.canonicalize_dtype(a.dtype)


def test_a_device_is_where_the_rows_are():
    jax = pytest.importorskip("jax")
    device = jax.devices()[-1]
    buffer = fill(make(10, device=device), [4])
    assert all(array.devices() == {device} for array in buffer.dataset.values())
    assert buffer.sample("all", 3)[0]["number"].devices() == {device}


# -- keeping it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_jax", [False, True])
@pytest.mark.parametrize("ended", [True, False])
def test_a_saved_buffer_goes_on_as_if_nothing_had_been(tmp_path, use_jax, ended):
    if use_jax:
        pytest.importorskip("jax")
    buffer = rich(fill(make(30, use_jax=use_jax), [5, 1, 9, 20, 2, 13], ended=ended))
    buffer.sample("rich", 7)
    buffer._configs["rich"].priority.update_priorities(np.arange(25, 40), np.arange(15.0))
    buffer.save(tmp_path / "buffer.npz")
    loaded = rich(TrajectoryBuffer.load(tmp_path / "buffer", use_jax=use_jax))
    for each in (buffer, loaded):
        for i in range(9):
            each.insert(step(100 + i, 100), i == 8)
    assert loaded._sample_begin_idx == buffer._sample_begin_idx
    assert loaded._sample_end_idx == buffer._sample_end_idx
    assert loaded.inserted == buffer.inserted
    assert same(loaded.metadata, buffer.metadata)
    for _ in range(2):
        assert same(loaded.sample("rich", 50), buffer.sample("rich", 50))


def test_dtypes_that_numpy_does_not_know_are_kept(tmp_path):
    pytest.importorskip("ml_dtypes")
    buffer = TrajectoryBuffer(10, [DataShape("a", (2,), "bfloat16")])
    for i in range(3):
        buffer.insert({"a": np.full(2, i, buffer.dataset["a"].dtype)})
    buffer.save(tmp_path / "b.npz")
    loaded = TrajectoryBuffer.load(tmp_path / "b.npz")
    assert loaded.dataset["a"].dtype == buffer.dataset["a"].dtype
    assert np.array_equal(loaded.dataset["a"], buffer.dataset["a"])


def test_a_save_that_fails_leaves_the_previous_one(tmp_path, monkeypatch):
    buffer = fill(make(30), [5])
    path = tmp_path / "b.npz"
    buffer.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        buffer.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["b.npz"]


def test_files_that_are_no_saved_buffer(tmp_path):
    path = tmp_path / "b.npz"
    with pytest.raises(FileNotFoundError):
        TrajectoryBuffer.load(path)
    fill(make(30), [5]).save(path)
    whole = path.read_bytes()
    for content in (whole[:-50], whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(DecodeError, match="not a saved"):
            TrajectoryBuffer.load(path)
    np.savez(path, a=np.array([None]), state=np.zeros(2, np.uint8))  # pickled inside
    with pytest.raises(DecodeError, match="not a saved"):
        TrajectoryBuffer.load(path)
