"""The actor's queue."""

import threading

import pytest

from agentlace.data import QueuedDataStore


def test_what_is_new_since_an_id():
    store = QueuedDataStore(6)
    assert len(store) == 0 and store.latest_data_id() == -1
    assert store.get_latest_data(-1) == []
    store.insert("a")
    store.insert("b")
    known = store.latest_data_id()
    assert store.get_latest_data(known) == []
    assert store.get_latest_data(-1) == ["a", "b"]
    store.batch_insert(["c", "d", "e"])
    assert store.get_latest_data(known) == ["c", "d", "e"]
    assert len(store) == 5


def test_at_capacity_the_oldest_go_and_are_counted():
    store = QueuedDataStore(4)
    store.batch_insert([0, 1])
    known = store.latest_data_id()
    store.batch_insert([2, 3, 4, 5, 6, 7, 8])
    assert len(store) == 4 and store.capacity == 4
    assert store.get_latest_data(known) == [5, 6, 7, 8]
    assert list(store._data_queue) == [5, 6, 7, 8]
    taken = store.take_after(known)
    assert (taken.rows, taken.last_id, taken.lost) == ([5, 6, 7, 8], 8, 3)
    assert store.take_after(6) == ([7, 8], 8, 0)
    assert store.take_after(8) == ([], 8, 0)


@pytest.mark.parametrize("rows", [[], [1], list(range(10))])
def test_a_batch_counts_as_its_rows(rows):
    one, other = QueuedDataStore(5), QueuedDataStore(5)
    one.batch_insert(rows)
    for row in rows:
        other.insert(row)
    assert one.latest_data_id() == other.latest_data_id() == len(rows) - 1
    assert one.get_latest_data(-1) == other.get_latest_data(-1)


def test_rows_are_kept_as_they_are():
    row = {"observations": [1, 2]}
    store = QueuedDataStore(2)
    store.insert(row)
    assert store.get_latest_data(-1)[0] is row


def test_several_threads_may_insert():
    store = QueuedDataStore(100_000)

    def insert(thread):
        for i in range(2000):
            store.insert((thread, i))
            if i % 100 == 0:
                store.batch_insert([(thread, "batch")] * 3)

    threads = [threading.Thread(target=insert, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == store.latest_data_id() + 1 == 4 * (2000 + 60)
    for thread in range(4):
        own = [i for t, i in store.get_latest_data(-1) if t == thread and i != "batch"]
        assert own == list(range(2000))
