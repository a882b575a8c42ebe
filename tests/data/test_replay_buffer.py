"""The replay buffer: rows and columns, wrapping around, what it refuses, and being torn at."""

import logging
import threading

import numpy as np
import pytest

from agentlace import SchemaMismatch
from agentlace.data import QueuedDataStore, ReplayBuffer
from agentlace.data.jaxrl_data_store import ReplayBufferDataStore

from .support import checksum, chunk, row, same, sealed


def content(buffer):
    """Return the buffer's transitions in the order of their positions."""
    batch = buffer.sample(len(buffer), indx=np.arange(len(buffer)))
    return [row(batch, i) for i in range(len(buffer))]


# -- rows and columns ------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1], [3, 4], [10], [7, 7, 7], [25], [4, 11, 30, 2], [10, 10]])
def test_columns_rows_and_batches_leave_the_same_buffer(sizes):
    by_columns, by_rows, by_batches = (ReplayBuffer(10) for _ in range(3))
    start = 0
    for size in sizes:
        rows = [sealed(i) for i in range(start, start + size)]
        start += size
        by_columns.insert_chunk(chunk(rows))
        by_batches.batch_insert(rows)
        for transition in rows:
            by_rows.insert(transition)
        for buffer in (by_columns, by_batches):
            assert len(buffer) == len(by_rows) == min(start, 10)
            assert buffer.latest_data_id() == start - 1
            assert same(buffer.dataset, by_rows.dataset)
    newest = {int(transition["n"]) for transition in content(by_columns)}
    assert newest == set(range(max(0, start - 10), start))


def test_images_that_rows_share_are_stored_for_each():
    """Observations that travel once must not turn black at the write head."""
    frames = [np.full((64, 64, 3), i, np.uint8) for i in range(9)]
    rows = [{"observations": frames[i], "next_observations": frames[i + 1]} for i in range(8)]
    buffer = ReplayBuffer(5)
    for start in (0, 4):
        buffer.insert_chunk(chunk(rows[start : start + 4]))
    for transition in content(buffer):
        first = int(transition["observations"][0, 0, 0])
        assert (transition["observations"] == first).all()
        assert (transition["next_observations"] == first + 1).all()


def test_a_chunk_is_not_kept_alive_or_changed():
    arrived = chunk([sealed(i) for i in range(3)])
    buffer = ReplayBuffer(10)
    buffer.insert_chunk(arrived)
    arrived.columns["rewards"][:] = -1
    assert [float(t["rewards"]) for t in content(buffer)] == [0, 1, 2]


def test_a_subclass_that_overrides_insert_only_sees_each_transition():
    class Counting(ReplayBuffer):
        def __init__(self, capacity):
            super().__init__(capacity)
            self.seen = []

        def insert(self, data):
            self.seen.append(int(data["n"]))
            super().insert({**data, "rewards": data["rewards"] * 2})

    counting = Counting(10)
    counting.insert_chunk(chunk([sealed(i) for i in range(4)]))
    counting.batch_insert([sealed(4)])
    assert counting.seen == [0, 1, 2, 3, 4]
    assert [float(t["rewards"]) for t in content(counting)] == [0, 2, 4, 6, 8]


def test_rows_without_a_common_structure_are_inserted_one_by_one():
    buffer = ReplayBuffer(10)
    buffer.insert_chunk(chunk([{"a": 1.0, "info": [1, 2]}, {"info": [3, 4], "a": 2.0}]))
    assert buffer.dataset["info"][:2].tolist() == [[1, 2], [3, 4]]


def test_a_row_that_does_not_fit_does_not_keep_the_others_out():
    buffer = ReplayBuffer(10)
    rows = [sealed(0), {**sealed(1), "rewards": "much"}, sealed(2)]
    refusals = buffer.insert_chunk(chunk(rows))
    assert list(refusals) == [1] and isinstance(refusals[1], SchemaMismatch)
    with pytest.raises(SchemaMismatch, match="rewards"):
        buffer.batch_insert(rows)
    assert [int(t["n"]) for t in content(buffer)] == [0, 2, 0, 2]


# -- what a transition may be ----------------------------------------------------------------------


def test_step_tuples_become_transitions():
    five, four = ReplayBuffer(3), ReplayBuffer(3)
    five.insert((np.ones(4, np.float32), 0, False, True, {"lives": 3}))
    five.insert((np.zeros(4, np.float32), 0.5, True, False, {}))
    batch = five.sample(2, indx=np.arange(2))
    assert batch.keys() == {"observations", "rewards", "terminated", "truncated"}
    assert batch["rewards"].tolist() == [0, 0.5]
    assert batch["truncated"].tolist() == [True, False]
    four.insert(({"a": np.ones(2), "b": np.ones(3)}, 1.5, True, {}))
    assert four.sample(1)["dones"].tolist() == [True]
    assert four.sample(1)["observations"]["b"].shape == (1, 3)


def test_step_tuples_from_the_stream_become_the_same():
    steps = [(np.full(4, i, np.float32), i / 2, i == 2, False, {}) for i in range(3)]
    local, remote, ragged = ReplayBuffer(5), ReplayBuffer(5), ReplayBuffer(5)
    local.batch_insert(steps)
    remote.insert_chunk(chunk(steps))
    ragged.insert_chunk(chunk([(*step[:4], {"n": i} if i else {}) for i, step in enumerate(steps)]))
    assert same(remote.dataset, local.dataset) and same(ragged.dataset, local.dataset)


def test_other_tuples_are_trees():
    buffer = ReplayBuffer(3)
    buffer.insert((np.ones(2), 1, {"a": np.float32(2)}))
    first, second, third = buffer.sample(4)
    assert first.shape == (4, 2) and second.tolist() == [1] * 4 and third["a"].tolist() == [2] * 4


def test_bare_arrays_and_numbers_are_transitions():
    buffer = ReplayBuffer(2)
    for i in range(3):
        buffer.insert(np.full(3, i))
    assert sorted(buffer.sample(2, indx=np.arange(2))[:, 0].tolist()) == [1, 2]
    numbers = ReplayBuffer(2)
    numbers.insert(5)
    assert numbers.sample(3).tolist() == [5, 5, 5]


# -- what is refused -------------------------------------------------------------------------------


def changed(path, value):
    transition = sealed(99)
    *parents, last = path
    place = transition
    for key in parents:
        place = place[key]
    place[last] = value
    return transition


def without(key):
    transition = sealed(99)
    del transition[key]
    return transition


MISFITS = [
    (changed(["observations", "state"], np.zeros(19, np.float32)), "observations/state", "(19,)"),
    (changed(["observations", "wrist"], np.zeros((8, 8, 1), np.uint8)), "wrist", "(8, 8, 1)"),
    (changed(["observations", "wrist"], np.zeros((8, 8, 3))), "observations/wrist", "float64"),
    (changed(["rewards"], np.zeros(1, np.float32)), "rewards", "(1,)"),
    (changed(["n"], 0.5), "n", "float64"),
    (changed(["actions"], (np.zeros(7),)), "actions/1", "missing"),
    (changed(["actions"], np.zeros(7)), "actions", ""),
    (changed(["done"], True), "done", "unknown"),
    (without("rewards"), "rewards", "missing"),
    (changed(["rewards"], "much"), "rewards", "<U4"),
]


@pytest.mark.parametrize(("misfit", "path", "reason"), MISFITS)
@pytest.mark.parametrize("how", ["row", "chunk of one", "chunk of three"])
def test_a_misfit_is_refused_whole_with_its_path_and_both_shapes(misfit, path, reason, how):
    buffer = ReplayBuffer(10)
    buffer.batch_insert([sealed(0), sealed(1)])
    before = [leaf.copy() for leaf in _storage(buffer)]
    with pytest.raises(SchemaMismatch) as caught:
        if how == "row":
            buffer.insert(misfit)
        else:
            count = 1 if how == "chunk of one" else 3
            refusals = buffer.insert_chunk(chunk([misfit] * count))  # columns raise, rows do not
            assert list(refusals) == list(range(count))
            raise refusals[0]
    assert path in caught.value.path and reason in str(caught.value)
    if reason.startswith("("):
        expected = sealed(0)["observations"].get(path.split("/")[-1], np.zeros(()))
        assert f"the store has {expected.shape}" in str(caught.value)
    assert len(buffer) == 2
    assert all(np.array_equal(*pair) for pair in zip(before, _storage(buffer), strict=True))
    buffer.insert(sealed(2))
    assert [int(t["n"]) for t in content(buffer)] == [0, 1, 2]


def _storage(buffer, tree=None):
    tree = buffer.dataset if tree is None else tree
    if isinstance(tree, np.ndarray):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree
    return [leaf for value in values for leaf in _storage(buffer, value)]


def test_one_misfit_among_columns_refuses_them_all():
    rows = [{"a": np.float32(i), "b": np.zeros(3)} for i in range(4)]
    buffer = ReplayBuffer(10)
    buffer.insert({"a": np.float32(0), "b": np.zeros(2)})
    with pytest.raises(SchemaMismatch, match=r"b: shape \(3,\), the store has \(2,\)"):
        buffer.insert_chunk(chunk(rows))
    assert len(buffer) == 1 and buffer.dataset["a"].tolist() == [0] * 10


@pytest.mark.parametrize("value", [None, object(), np.array([None])])
def test_what_cannot_be_stored_is_named_at_the_first_insert(value):
    buffer = ReplayBuffer(3)
    with pytest.raises(SchemaMismatch) as caught:
        buffer.insert({"info": {"robot": value}})
    assert caught.value.path == "info/robot"
    assert len(buffer) == 0
    buffer.insert({"info": {"robot": 1}})
    assert len(buffer) == 1


def test_a_wider_dtype_is_stored_as_declared_with_one_warning(caplog):
    caplog.set_level(logging.WARNING)
    buffer = ReplayBuffer(10, example={"a": np.zeros(2, np.float32), "b": np.float32(0)})
    for _ in range(3):
        buffer.insert({"a": np.full(2, 0.1), "b": 0.5})
        buffer.insert_columns({"a": np.full((2, 2), 0.1), "b": np.full(2, 0.5)}, 2)
    assert buffer.dataset["a"].dtype == np.float32
    assert np.array_equal(buffer.dataset["a"][:9], np.full((9, 2), 0.1, np.float32))
    told = [record.message for record in caplog.records]
    assert [text.split()[0] for text in told] == ["a", "b"]
    assert "float64" in told[0] and "float32" in told[0]


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_buffer_needs_a_capacity(capacity):
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(capacity)


# -- sampling --------------------------------------------------------------------------------------


def test_samples_are_uniform_reproducible_and_copies():
    one, other = ReplayBuffer(50, seed=1), ReplayBuffer(50, seed=1)
    for buffer in (one, other):
        buffer.batch_insert([sealed(i) for i in range(120)])
    batch = one.sample(5000)
    assert same(batch, other.sample(5000))
    numbers, counts = np.unique(batch["n"], return_counts=True)
    assert numbers.tolist() == list(range(70, 120))
    assert 50 < counts.min() and counts.max() < 160
    batch["n"][:] = -1
    assert one.sample(100)["n"].min() >= 70


def test_samples_by_keys_and_positions():
    buffer = ReplayBuffer(10)
    buffer.batch_insert([sealed(i) for i in range(4)])
    batch = buffer.sample(3, keys=["n", "rewards"], indx=np.array([3, 0, 0]))
    assert batch.keys() == {"n", "rewards"} and batch["n"].tolist() == [3, 0, 0]


def test_an_empty_buffer_cannot_be_sampled():
    for buffer in (ReplayBuffer(3), ReplayBuffer(3, example={"a": 1})):
        with pytest.raises(ValueError, match="empty"):
            buffer.sample(1)


def test_no_sample_is_ever_torn():
    """Two threads insert, by rows and by columns; each sampled transition must be whole."""
    buffer = ReplayBuffer(64)
    rows = [sealed(i) for i in range(200)]
    chunks = [chunk(rows[i : i + 50]) for i in range(0, 200, 50)]
    buffer.insert(rows[0])
    stop, faults = threading.Event(), []

    def insert(insert_one, things):
        while not stop.is_set():
            for thing in things:
                insert_one(thing)

    def sample():
        for _ in range(60):
            batch = buffer.sample(64)
            for i in range(64):
                transition = row(batch, i)
                if checksum(transition) != transition["seal"]:
                    faults.append(int(transition["n"]))

    inserting = [
        threading.Thread(target=insert, args=(buffer.insert, rows)),
        threading.Thread(target=insert, args=(buffer.insert_chunk, chunks)),
    ]
    sampling = [threading.Thread(target=sample) for _ in range(2)]
    for thread in inserting + sampling:
        thread.start()
    for thread in sampling:
        thread.join()
    stop.set()
    for thread in inserting:
        thread.join()
    assert not faults
    assert buffer.latest_data_id() > 500


# -- on the actor's side ---------------------------------------------------------------------------


def test_it_can_be_sent_from_like_a_queue():
    buffer, queue = ReplayBuffer(10), QueuedDataStore(10)
    position = -1
    for start, size in [(0, 3), (3, 0), (3, 9), (12, 25), (37, 10)]:
        rows = [sealed(i) for i in range(start, start + size)]
        for store in (buffer, queue):
            store.batch_insert(rows)
        mine, theirs = buffer.take_after(position), queue.take_after(position)
        assert (mine.last_id, mine.lost) == (theirs.last_id, theirs.lost)
        assert len(mine.rows) == len(theirs.rows)
        assert all(same(*pair) for pair in zip(mine.rows, theirs.rows, strict=True))
        assert [int(r["n"]) for r in buffer.get_latest_data(position)] == [
            int(r["n"]) for r in mine.rows
        ]
        position = mine.last_id
    assert buffer.take_after(position) == ([], position, 0)
    assert ReplayBuffer(3).get_latest_data(-1) == []


def test_taken_rows_are_copies():
    buffer = ReplayBuffer(2)
    buffer.insert({"a": np.zeros(3)})
    taken = buffer.get_latest_data(-1)[0]
    buffer.batch_insert([{"a": np.ones(3)}] * 2)
    assert taken["a"].tolist() == [0, 0, 0]


# -- shapes from spaces ----------------------------------------------------------------------------


@pytest.fixture
def spaces():
    return pytest.importorskip("gymnasium").spaces


def test_spaces_give_shapes_and_dtypes(spaces, caplog):
    observation_space = spaces.Dict(
        {
            "wrist": spaces.Box(0, 255, (1, 8, 8, 3), np.uint8),
            "state": spaces.Box(-1, 1, (1, 19), np.float32),
            "phase": spaces.Discrete(3),
        }
    )
    action_space = spaces.Box(-1, 1, (7,), np.float32)
    store = ReplayBufferDataStore(observation_space, action_space, capacity=5)
    assert len(store) == 0
    for i in range(7):
        store.insert(
            {
                "observations": observation_space.sample(),
                "next_observations": observation_space.sample(),
                "actions": np.ones(7),  # float64, as from a SpaceMouse
                "rewards": i,
                "masks": 1.0 - (i == 6),
                "dones": i == 6,
            }
        )
    batch = store.sample(4)
    assert batch["observations"]["wrist"].shape == (4, 1, 8, 8, 3)
    dtypes = {key: batch[key].dtype for key in ("actions", "rewards", "masks", "dones")}
    assert dtypes == dict(actions="f4", rewards="f4", masks="f4", dones="?")
    assert len(store) == 5 and store.latest_data_id() == 6
    with pytest.raises(SchemaMismatch, match="observations/state"):
        observations = {**observation_space.sample(), "state": np.zeros(19, np.float32)}
        store.insert({**row(batch, 0), "observations": observations})
    assert {r.message.split()[0] for r in caplog.records} == {"actions", "rewards", "masks"}


def test_a_wrong_first_transition_is_refused_by_the_spaces(spaces):
    box = spaces.Box(-1, 1, (3,), np.float32)
    store = ReplayBufferDataStore(box, box, capacity=5)
    good = {"observations": np.zeros(3), "actions": np.zeros(3), "rewards": 0.0}
    with pytest.raises(SchemaMismatch, match=r"observations: shape \(4,\), the store has \(3,\)"):
        store.insert({**good, "observations": np.zeros(4)})
    store.insert(good)
    assert len(store) == 1


def test_a_space_without_a_shape_is_refused(spaces):
    with pytest.raises(TypeError, match="Sequence"):
        ReplayBufferDataStore(spaces.Sequence(spaces.Discrete(3)), spaces.Discrete(2), capacity=5)
