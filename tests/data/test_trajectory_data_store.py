"""The trajectory store at both ends of a stream: which rows end, what is refused, what goes out."""

import dataclasses

import numpy as np
import pytest

from agentlace import SchemaMismatch
from agentlace.data.data_store import put, take_after
from agentlace.data.jaxrl_data_store import (
    TrajectoryBufferDataStore,
    make_default_trajectory_buffer,
)
from agentlace.data.sampler import LatestSampler, SequenceSampler
from agentlace.data.snapshots import Snapshots
from agentlace.data.trajectory_buffer import DataShape

from .support import chunk, same
from .trajectories import SHAPES, step


def make(capacity=60, min_length=2, **kwargs):
    store = TrajectoryBufferDataStore(capacity, SHAPES, min_trajectory_length=min_length, **kwargs)
    store.register_sample_config(
        "all", {"number": LatestSampler(), "next": SequenceSampler(True, 1, 2, "number")}
    )
    return store


def trajectories(lengths, mark):
    """Return rows of trajectories, whose ends are marked in one of the ways."""
    marks = {
        "end_of_trajectory": lambda end: {"end_of_trajectory": end},
        "dones": lambda end: {"dones": np.bool_(end)},
        "vector": lambda end: {"dones": np.array([end], np.float32)},
        "truncated": lambda end: {"terminated": False, "truncated": end},
    }
    rows = []
    for episode, length in enumerate(lengths):
        for i in range(length):
            rows.append(step(len(rows), episode, **marks[mark](i == length - 1)))
    return rows


def state(store):
    return {**store.dataset, **store.metadata, "range": np.array(store._episodes.range)}


@pytest.mark.parametrize("mark", ["end_of_trajectory", "dones", "vector", "truncated"])
@pytest.mark.parametrize("cut", [1, 7, 25, 400])
def test_chunks_rows_and_batches_leave_the_same_store(mark, cut):
    rows = trajectories([5, 1, 9, 20, 2, 1, 13, 30, 6], mark)
    by_insert, by_chunk, by_batch = make(), make(), make()
    for i, row in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1]["episode"] != row["episode"]
        by_insert.insert(step(int(row["number"]), int(row["episode"])), last)
    for start in range(0, len(rows), cut):
        assert put(by_chunk, chunk(rows[start : start + cut])) == {}
        by_batch.batch_insert(rows[start : start + cut])
    assert same(state(by_chunk), state(by_insert)) and same(state(by_batch), state(by_insert))
    data, mask = by_chunk.sample("all", 500)
    assert (data["next"] - data["number"])[mask["next"]].tolist() == [1] * mask["next"].sum()


def test_a_mask_of_0_is_an_end_unless_something_else_tells_it():
    shapes = [*SHAPES, type(SHAPES[0])("masks")]
    store = TrajectoryBufferDataStore(60, shapes)
    for i in range(4):
        store.insert(step(i, 0, masks=float(i != 3)))
    assert store._trajectory.begin_idx == 4
    for i in range(4):
        store.insert(step(i, 1, masks=float(i != 1), dones=False))
    assert store._trajectory.begin_idx == 4
    store.insert(step(4, 1, masks=1.0, dones=False), True)
    assert store._trajectory.begin_idx == 9


def test_a_row_that_does_not_fit_ends_its_trajectory():
    rows = trajectories([8], "dones")
    rows[3] = {**rows[3], "actions": np.zeros(5, np.int32)}
    store = make()
    refusals = put(store, chunk(rows))
    assert list(refusals) == [3] and isinstance(refusals[3], SchemaMismatch)
    data, mask = store.sample("all", 0, force_indices=np.arange(7))
    assert data["number"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert mask["next"].tolist() == [True, True, False, True, True, True, False]


def test_columns_that_do_not_fit_are_refused_whole_and_end_the_trajectory():
    rows = trajectories([4, 4], "dones")
    store = make()
    store.insert_chunk(chunk(rows[:3]))
    with pytest.raises(SchemaMismatch, match="colour"):
        store.insert_chunk(chunk([{**row, "colour": 1} for row in rows[3:6]]))
    assert (store._insert_idx, store._trajectory.begin_idx) == (3, 3)


def of(actor, rows):
    arrived = chunk(rows)
    arrived.meta = {"actor": actor}
    return arrived


def stored(store):
    """Return the numbers of the rows of each trajectory that is there."""
    rows = np.arange(store._insert_idx)[-store.capacity :] % store.capacity
    ids, numbers = store.metadata["trajectory_id"][rows], store.dataset["number"][rows]
    return [numbers[ids == i].tolist() for i in np.unique(ids)]


def test_trajectories_of_several_actors_stay_whole_in_any_order_of_their_chunks():
    lengths = [5, 2, 9, 4, 7, 1, 3]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        left = {name: trajectories(lengths, "dones") for name in ("a", "b", "c")}
        store = make(capacity=600)
        while any(left.values()):
            name = rng.choice([name for name, rows in left.items() if rows])
            n = int(rng.integers(1, 8))
            part, left[name] = left[name][:n], left[name][n:]
            if rng.random() < 0.2:  # rows without a common structure come one by one
                arrived = of(name, part)
                arrived = dataclasses.replace(arrived, columns=None, _rows=arrived.rows())
            else:
                arrived = of(name, part)
            assert put(store, arrived) == {}
        numbers = iter(range(sum(lengths)))
        whole = [[next(numbers) for _ in range(length)] for length in lengths]
        assert sorted(stored(store)) == sorted(3 * [t for t in whole if len(t) > 1])
        assert not store._waiting and store._waiting.rows == 0


def test_rows_that_wait_fit_or_are_refused_at_once_and_end_their_trajectory():
    store = make()
    put(store, of("a", trajectories([9], "dones")[:3]))
    rows = trajectories([8], "dones")
    put(store, of("b", rows[:3]))
    with pytest.raises(SchemaMismatch, match="colour"):
        put(store, of("b", [{**row, "colour": 1} for row in rows[3:4]]))
    ragged = of("b", rows[4:8])
    ragged = dataclasses.replace(
        ragged, columns=None, _rows=[*ragged.rows()[:2], {"number": 1}, *ragged.rows()[2:]]
    )
    assert put(store, ragged).keys() == {2}
    put(store, of("a", trajectories([9], "dones")[3:]))
    assert stored(store) == [list(range(9)), [0, 1, 2], [4, 5], [6, 7]]


def test_actors_that_end_nothing_are_cut_so_that_no_memory_grows(caplog):
    store = make(capacity=80)
    for i in range(30):
        for actor in "ab":
            put(store, of(actor, trajectories([100], "dones")[2 * i : 2 * i + 2]))
            assert store._waiting.rows <= 10
    assert caplog.text.count("rows of other actors wait") == 1
    steps = [np.diff(numbers) for numbers in stored(store)]
    assert all((step == 1).all() for step in steps)


def test_what_waits_is_cut_when_it_is_saved_to_a_file(tmp_path):
    store = make()
    put(store, of("a", trajectories([9], "dones")[:3]))
    put(store, of("b", trajectories([9], "dones")[:5]))
    store.save(tmp_path / "buffer.npz")
    other = TrajectoryBufferDataStore.load(tmp_path / "buffer.npz")
    assert stored(other) == stored(store) == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_what_waits_waits_on_after_a_snapshot(tmp_path):
    rows, store, other = trajectories([9], "dones"), make(600), make(600)
    put(store, of("a", rows[:3]))
    put(store, of("b", rows[:5]))
    put(store, of("c", rows[:9]))
    Snapshots(tmp_path, store).save()
    Snapshots(tmp_path, other).restore()
    assert stored(other) == stored(store) == [[0, 1, 2]]
    for each in (store, other):
        put(each, of("b", rows[5:]))
        put(each, of("a", rows[3:]))
    assert stored(other) == stored(store) == [list(range(9))] * 3


def test_a_subclass_that_overrides_insert_sees_each_row():
    class Counting(TrajectoryBufferDataStore):
        seen = 0

        def insert(self, data, end_of_trajectory=False):
            self.seen += 1
            super().insert(data, end_of_trajectory)

    store = Counting(60, SHAPES)
    put(store, chunk(trajectories([5], "dones")))
    assert store.seen == len(store) == 5


# -- on the actor's side ---------------------------------------------------------------------------


@pytest.mark.parametrize("explicit", [True, False])
def test_what_an_actor_sends_makes_the_same_trajectories(explicit):
    """Ends are told in time, also by `end_trajectory`, and rolled back rows are not sent."""
    sender, receiver, position = make(200, 3), make(200, 3), -1
    number = 0
    for episode, length in enumerate([5, 2, 9, 1, 3, 2, 20, 4]):
        for i in range(length):
            sender.insert(step(number, episode), explicit and i == length - 1)
            number += 1
            if number % 4 == 0:
                taken = take_after(sender, position)
                assert taken.lost == 0
                receiver.insert_chunk(chunk(taken.rows)) if taken.rows else None
                position = taken.last_id
        if not explicit:
            sender.end_trajectory()
    taken = take_after(sender, position)
    receiver.insert_chunk(chunk(taken.rows))
    assert taken.last_id == sender.latest_data_id() == number - 1
    assert same(state(receiver), state(sender))


def test_what_was_overwritten_unseen_is_counted():
    store = make(10)
    for i in range(6):
        store.insert(step(i, 0))
    assert [int(r["number"]) for r in store.get_latest_data(-1)] == [0, 1, 2, 3, 4]
    for i in range(6, 25):
        store.insert(step(i, 0), i == 24)
    taken = store.take_after(4)
    assert [int(r["number"]) for r in taken.rows] == list(range(15, 25))
    assert (taken.last_id, taken.lost) == (24, 10)
    assert [bool(r["end_of_trajectory"]) for r in taken.rows] == [False] * 9 + [True]
    assert store.take_after(24) == ([], 24, 0)


# -- shapes from spaces ----------------------------------------------------------------------------


def test_the_default_buffer_yields_transitions_of_an_environment():
    spaces = pytest.importorskip("gymnasium").spaces
    observation_space = spaces.Dict(
        {"wrist": spaces.Box(0, 255, (8, 8, 3), np.uint8), "state": spaces.Box(-1, 1, (4,))}
    )
    store = make_default_trajectory_buffer(observation_space, spaces.Box(-1, 1, (2,)), 50)
    observations = [observation_space.sample() for _ in range(21)]
    rows = [
        {
            "observations": observations[i],
            "next_observations": observations[i + 1],
            "actions": np.full(2, i, np.float32),
            "rewards": np.float32(i),
            "masks": np.float32(i != 19),
            "dones": i % 10 == 9,
        }
        for i in range(20)
    ]
    assert put(store, chunk(rows)) == {}
    batch, mask = store.sample("training", 400)
    at = batch["rewards"].astype(int)
    assert set(at) == set(range(20))
    for key, shift in (("observations", 0), ("next_observations", 1)):
        for name in ("wrist", "state"):
            expected = np.stack([observations[i + shift][name] for i in at])
            assert np.array_equal(batch[key][name], expected)
    assert (batch["end_of_trajectory"] == (at % 10 == 9)).all()
    assert mask["observations"].shape == (400,)


class OwnInsert(TrajectoryBufferDataStore):
    def insert(self, data, end_of_trajectory=False):
        super().insert(data, end_of_trajectory)


def test_a_subclass_sees_rows_of_several_actors_at_once_and_each_change_cuts(caplog):
    store = OwnInsert(100, [DataShape("x", (1,))])
    for actor, first in (("a", 0), ("b", 50), ("a", 3)):
        store.insert_chunk(of(actor, [{"x": np.full(1, first + i, np.float32)} for i in range(3)]))
    assert store.metadata["trajectory_id"][:9].ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert caplog.text.count("is cut") == 1
