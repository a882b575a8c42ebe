"""Stores that are filled from RLDS episodes."""

import threading
import tracemalloc

import numpy as np
import pytest

from agentlace import DecodeError, SchemaMismatch
from agentlace.data import DataStoreBase, QueuedDataStore, ReplayBuffer, TrajectoryBuffer
from agentlace.data.demos import load_rlds
from agentlace.data.frame_buffer import FrameReplayBuffer
from agentlace.data.tfds import (
    get_value_from_tensor,
    make_datastore,
    populate_datastore,
    tensor_spec_to_gym_space,
)
from agentlace.data.trajectory_ring import DataShape
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.writer import DatasetWriter

from .rlds_episodes import check_transition, episode, episodes, expected, observation

LENGTHS = (5, 1, 3, 8)


def rows_of(store):
    return store.get_latest_data(-1)


def as_mappings(found):
    """The same episodes in other shapes: steps that are iterated, and columns."""
    for number, one in enumerate(found):
        columns = {}
        for key in one.steps[0]:
            values = [step[key] for step in one.steps]
            is_tree = isinstance(values[0], dict)
            columns[key] = (
                {name: np.stack([value[name] for value in values]) for name in values[0]}
                if is_tree
                else np.stack(values)
            )
        yield {"steps": columns if number % 2 else iter(one.steps), "episode_metadata": {}}


@pytest.fixture
def dataset(tmp_path):
    """The folder of a dataset of :func:`episodes`."""
    with DatasetWriter(tmp_path, "cube") as writer:
        for one in episodes(LENGTHS):
            writer.append(one)
            writer.commit()
        return writer.directory


@pytest.mark.parametrize("shape", [list, as_mappings])
def test_each_transition_is_as_it_was(shape):
    store = populate_datastore(QueuedDataStore(100), shape(episodes(LENGTHS)))
    rows = rows_of(store)
    assert len(rows) == sum(LENGTHS)
    for row, (e, t, _, mask) in zip(rows, expected(LENGTHS), strict=True):
        check_transition(row, e, t, mask)
        assert set(row) == {"observations", "next_observations", "actions", "rewards", "masks"}


@pytest.mark.parametrize(
    "type", ["replay_buffer", "with_dones", "trajectory_buffer", "queued_datastore"]
)
def test_a_dataset_becomes_a_store_of_its_shapes(dataset, type):
    store = make_datastore(dataset, 100, type)
    # A trajectory of one is too short to be sampled.
    wanted = [w for w in expected(LENGTHS) if type != "trajectory_buffer" or LENGTHS[w[0]] > 1]
    rows = rows_of(store)
    assert len(rows) == len(store) == len(wanted)
    end = {"with_dones": "dones", "trajectory_buffer": "end_of_trajectory"}.get(type)
    for row, (e, t, is_last, mask) in zip(rows, wanted, strict=True):
        check_transition(row, e, t, mask)
        if end:
            assert row[end] == is_last
        assert {"dones", "end_of_trajectory"} & set(row) == ({end} if end else set())
    if type != "queued_datastore":
        assert store.preloaded == sum(LENGTHS)


def test_a_sample_of_a_trajectory_buffer_is_of_one_episode(dataset):
    store = make_datastore(dataset, 100, "trajectory_buffer")
    data, _ = store.sample("training", 500)
    before, after = data["observations"]["state"], data["next_observations"]["state"]
    assert np.array_equal(before[:, 0], after[:, 0]) and np.all(after[:, 1] == before[:, 1] + 1)
    assert set(before[:, 0].astype(int)) == {0, 2, 3}


@pytest.mark.parametrize("make", ["replay_buffer", "queued_datastore", "trajectory_buffer"])
def test_a_transform_sees_what_else_a_step_has_and_may_leave_it_out(dataset, make):
    seen = []

    def transform(data, metadata):
        seen.append(metadata)
        if metadata["is_intervention"]:
            return None
        return {**data, "rewards": np.float32(metadata["step"])}

    store = make_datastore(dataset, 100, make, transform)
    everything = expected(LENGTHS)
    for metadata, (e, t, *_) in zip(seen, everything, strict=True):
        assert (metadata["step"], metadata["step_size"]) == (t, LENGTHS[e] + 1)
        assert metadata["language_instruction"] == f"lift cube {e}"
        assert metadata["policy_version"] == t
        assert metadata["is_first"] == (t == 0) and metadata["discount"] in (0, 1)
        assert not metadata.keys() & {"observation", "action", "reward", "is_last", "is_terminal"}
    kept = [t for _, t, *_ in everything if t % 2 == 0]
    if make == "trajectory_buffer":  # what is left of each trajectory is too short
        assert len(store) == 0
    else:
        assert [row["rewards"] for row in rows_of(store)] == kept


def test_a_bare_observation_is_a_bare_one_again(tmp_path):
    with DatasetWriter(tmp_path, "bare") as writer:
        writer.append(episode(1, 4, observe=lambda e, t: np.float64([e, t])))
        writer.commit()
    rows = rows_of(make_datastore(writer.directory, 9))
    assert [row["observations"].tolist() for row in rows] == [[1, t] for t in range(4)]
    assert rows[0]["observations"].dtype == np.float64


def test_texts_and_single_numbers_can_be_observed(tmp_path):
    def observe(e, t):
        return {"said": f"step {t}", "gear": np.int64(t), "open": np.bool_(t % 2)}

    with DatasetWriter(tmp_path, "mixed") as writer:
        writer.append(episode(0, 3, observe=observe))
        writer.commit()
    for type in ("replay_buffer", "trajectory_buffer"):
        rows = rows_of(make_datastore(writer.directory, 9, type))
        assert [str(row["next_observations"]["said"]) for row in rows] == [
            "step 1",
            "step 2",
            "step 3",
        ]
        assert [row["observations"]["gear"] for row in rows] == [0, 1, 2]


def test_a_trajectory_buffer_needs_no_type():
    shapes = [
        DataShape("observations/state", (3,)),
        DataShape("observations/wrist", (32, 40, 3), "uint8"),
        DataShape("next_observations/state", (3,)),
        DataShape("next_observations/wrist", (32, 40, 3), "uint8"),
        DataShape("actions", (2,)),
        DataShape("rewards"),
        DataShape("masks"),
    ]
    store = populate_datastore(TrajectoryBuffer(100, shapes), episodes(LENGTHS))
    assert np.unique(store.metadata["ep_end"][: len(store)]).tolist() == [5, 8, 16]


def test_stores_of_other_kinds():
    class Own(DataStoreBase):
        def __init__(self):
            super().__init__(100)
            self.rows = []

        def insert(self, data):
            self.rows.append(data)

        def __len__(self):
            return len(self.rows)

    own = populate_datastore(Own(), episodes(LENGTHS), "with_dones")
    for row, (e, t, is_last, mask) in zip(own.rows, expected(LENGTHS), strict=True):
        check_transition(row, e, t, mask)
        assert row["dones"] == is_last
    frames = populate_datastore(FrameReplayBuffer(100), episodes(LENGTHS), "with_dones")
    assert frames.inserted == frames.preloaded == len(own)


def test_demonstrations_are_loaded_with_their_ends(dataset):
    store = ReplayBuffer(100)
    assert load_rlds(store, dataset) == store.inserted == store.preloaded == sum(LENGTHS)
    for row, (e, t, is_last, mask) in zip(rows_of(store), expected(LENGTHS), strict=True):
        check_transition(row, e, t, mask)
        assert row["dones"] == is_last
    again = ReplayBuffer(100)
    assert load_rlds(again, episodes(LENGTHS)) == sum(LENGTHS)
    assert np.array_equal(again.dataset["actions"], store.dataset["actions"])


def test_a_dataset_is_read_one_episode_at_a_time(tmp_path):
    """The memory that it takes is that of one episode, however many there are."""

    def observe(e, t):
        return {"wrist": np.full((64, 64, 3), 10 * e + t, np.uint8)}

    with DatasetWriter(tmp_path, "large") as writer:
        for e in range(12):
            writer.append(episode(e, 20, observe=observe))
        writer.commit()
    nbytes = 12 * 21 * 64 * 64 * 3
    tracemalloc.start()
    try:
        store = make_datastore(writer.directory, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.inserted == 12 * 20 and len(store) == 8
    assert peak < nbytes / 2, (peak, nbytes)


def test_a_reader_that_is_left_in_the_middle_joins_no_thread(dataset, monkeypatch):
    """It may be collected anywhere, also within a thread's own start or end."""
    reading = DatasetReader(dataset).episodes()
    next(reading)
    monkeypatch.setattr(threading.Thread, "join", None)
    reading.close()


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_datastore(tmp_path, 9)
    with pytest.raises(ValueError, match="type='replay' is none of replay_buffer"):
        make_datastore(tmp_path, 9, "replay")
    with pytest.raises(ValueError, match="none of"):
        populate_datastore(ReplayBuffer(9), [], "replay")
    with pytest.raises(DecodeError, match=r"has 'steps', but this one is \['step'\]"):
        populate_datastore(ReplayBuffer(9), [{"step": []}])
    with pytest.raises(DecodeError, match="this one is int"):
        populate_datastore(ReplayBuffer(9), [3])
    with pytest.raises(DecodeError, match="no 'action', only observation"):
        populate_datastore(ReplayBuffer(9), [{"steps": [{"observation": np.zeros(2)}] * 2}])
    assert len(populate_datastore(ReplayBuffer(9), [{"steps": []}, {"steps": {}}])) == 0


def test_what_does_not_fit_the_store_is_refused():
    def wide(e, t):
        return {**observation(e, t), "state": np.zeros(9)}

    store = ReplayBuffer(9)
    with pytest.raises(SchemaMismatch, match="observations/state: shape"):
        populate_datastore(store, [episode(0, 2), episode(1, 2, observe=wide)])
    assert store.inserted == store.preloaded == 2


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0, 255), ("int32", -(2**31), 2**31 - 1), ("float32", -np.inf, np.inf)],
)
def test_spaces_of_specs(dtype, low, high):
    spaces = pytest.importorskip("gymnasium").spaces
    space = tensor_spec_to_gym_space({"a": np.zeros((2, 3), dtype)})
    assert space == spaces.Dict({"a": spaces.Box(low, high, (2, 3), dtype)})


def test_spaces_of_texts_flags_and_what_has_none():
    pytest.importorskip("gymnasium")
    assert "lift the cube!" in tensor_spec_to_gym_space(np.array("text"))
    flags = tensor_spec_to_gym_space(np.zeros(2, bool))
    assert np.zeros(2, bool) in flags and np.ones(2, bool) in flags
    with pytest.raises(TypeError, match="a list has no shape and dtype"):
        tensor_spec_to_gym_space([1])


def test_values_of_what_is_no_tensor():
    value = get_value_from_tensor({"a": b"text", "b": np.array([b"x", b"yz"]), "c": b"\xff\xd8"})
    assert value["a"] == "text" and value["b"].tolist() == ["x", "yz"] and value["c"] == b"\xff\xd8"
