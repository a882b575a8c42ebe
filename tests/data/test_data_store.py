"""The contract of a store, and taking rows from stores of a user's own."""

import inspect
import threading

import numpy as np
import pytest

import agentlace
from agentlace import data
from agentlace.data.data_store import DataStoreBase, QueuedDataStore, take_after
from agentlace.data.jaxrl_data_store import ReplayBufferDataStore
from agentlace.data.replay_buffer import ReplayBuffer


def test_the_names_are_where_programs_import_them_from():
    assert agentlace.data is data
    assert data.ReplayBuffer is ReplayBuffer
    assert data.QueuedDataStore is QueuedDataStore and data.DataStoreBase is DataStoreBase
    assert issubclass(ReplayBufferDataStore, DataStoreBase)
    assert [*inspect.signature(ReplayBufferDataStore).parameters][:4] == [
        "observation_space",
        "action_space",
        "capacity",
        "rlds_logger",
    ]


def test_the_base_is_plain_and_mixes_with_buffers_of_a_users_own():
    class Buffer:
        def __init__(self, size):
            self.size, self.rows = size, []

        def insert(self, row):
            self.rows.append(row)

        def __len__(self):
            return len(self.rows)

    class Store(Buffer, DataStoreBase):
        def __init__(self, capacity):
            Buffer.__init__(self, capacity)
            DataStoreBase.__init__(self, capacity)

    assert type(DataStoreBase) is type  # no metaclass that could clash
    store = Store(5)
    store.batch_insert([1, 2])
    store.insert(3)
    assert (store.rows, len(store), store.capacity) == ([1, 2, 3], 3, 5)
    with pytest.raises(NotImplementedError, match="Store"):
        store.latest_data_id()
    with pytest.raises(NotImplementedError, match="Store"):
        store.get_latest_data(-1)


def test_nothing_is_enforced():
    base = DataStoreBase(3)
    for call in (lambda: base.insert(1), lambda: len(base), lambda: base.batch_insert([1])):
        with pytest.raises(NotImplementedError):
            call()
    base.batch_insert([])


class Own(DataStoreBase):
    def __init__(self, rows=()):
        super().__init__(100)
        self.rows = list(rows)
        self.meanwhile = iter(())

    def latest_data_id(self):
        return len(self.rows) - 1

    def get_latest_data(self, from_id):
        rows = self.rows[from_id + 1 :]
        self.rows.extend(next(self.meanwhile, ()))
        return rows


def test_rows_and_their_id_belong_together_though_inserts_come_between():
    store = Own([0, 1])
    store.meanwhile = iter([(2, 3), (4,)])
    taken = take_after(store, 0)
    assert (taken.rows, taken.last_id, taken.lost) == ([1, 2, 3, 4], 4, 0)
    assert take_after(store, 4) == ([], 4, 0)


def test_rows_may_be_an_array():
    class Arrays(Own):
        def get_latest_data(self, from_id):
            return np.asarray(self.rows[from_id + 1 :])

    assert take_after(Arrays([5, 6, 7]), 0) == ([6, 7], 2, 0)
    assert take_after(Arrays(), -1) == ([], -1, 0)


def test_a_store_that_never_holds_still_raises():
    store = Own([0])
    store.meanwhile = iter(lambda: (0,), None)
    with pytest.raises(agentlace.AgentlaceError, match=r"Own.*take_after"):
        take_after(store, -1)


@pytest.mark.parametrize("make", [QueuedDataStore, ReplayBuffer])
def test_a_stores_own_take_after_is_atomic_under_inserts(make):
    store = make(500)
    done = threading.Event()

    def insert():
        for i in range(20_000):
            store.insert(np.int64(i))
        done.set()

    inserting = threading.Thread(target=insert)
    inserting.start()
    position, taken_rows, lost = -1, [], 0
    while True:
        was_done = done.is_set()
        taken = take_after(store, position)
        assert taken.last_id == position + len(taken.rows) + taken.lost
        if taken.rows:
            assert int(taken.rows[-1]) == taken.last_id
        position, lost = taken.last_id, lost + taken.lost
        taken_rows += map(int, taken.rows)
        if was_done:
            break
    inserting.join()
    assert position == 19_999 and len(taken_rows) + lost == 20_000
    assert taken_rows == sorted(set(taken_rows))
