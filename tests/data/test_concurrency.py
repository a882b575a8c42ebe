"""Inserting and sampling at the same time, over every store."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import agentlace.data.frame_windows
import agentlace.data.replay_buffer
import agentlace.data.storage
from agentlace.data.columns import map_leaves
from agentlace.data.data_store import put
from agentlace.data.ring import read_whole, take_rows
from agentlace.data.sampler import SequenceSampler

from .stores import STORES, sample, torn
from .support import chunk, sealed

WAIT_S = 30


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.mark.parametrize("capacity", [1, 4, 64])
def test_no_sample_is_ever_torn(make, capacity):
    """Rows and chunks are inserted; each sampled transition must be whole and not too old."""
    store = make(capacity) if capacity > 1 else make(2)
    rows = [sealed(i) for i in range(200)]
    chunks = [chunk(rows[i : i + 50]) for i in range(0, 200, 50)]
    put(store, chunks[0])
    stop = threading.Event()

    def insert():
        while not stop.is_set():
            for part in chunks:
                put(store, part)
            for row in rows[:20]:
                store.insert(row)

    def look():
        faults, samples = [], 0
        while samples < 100 or store.inserted < 1000:
            faults += torn(sample(store, 32))
            samples += 1
        return faults

    with ThreadPoolExecutor(3) as pool:
        inserting = pool.submit(insert)
        try:
            sampling = [pool.submit(look) for _ in range(2)]
            faults = [fault for each in sampling for fault in each.result(WAIT_S)]
        finally:
            stop.set()
        inserting.result(WAIT_S)
    assert not faults


def test_a_sample_does_not_wait_for_a_chunk_that_is_being_written(make):
    store = make(100)
    put(store, chunk([sealed(i) for i in range(50)]))
    with store._writing, ThreadPoolExecutor(1) as pool:
        assert not torn(pool.submit(sample, store, 32).result(WAIT_S))


def test_an_insert_does_not_wait_for_a_sample_and_the_sample_notices(make, monkeypatch):
    """The whole ring is overwritten while a sample reads: it must be drawn again."""
    store = make(64)
    put(store, chunk([sealed(i) for i in range(64)]))
    reading, go_on = threading.Event(), threading.Event()

    def slow_take(storages, positions):
        return map_leaves(lambda storage: slow_leaf(storage, positions), storages)

    def slow_leaf(storage, positions):
        taken = take_rows(storage, positions)
        if not reading.is_set() and len(positions) == 16:
            reading.set()
            assert go_on.wait(WAIT_S)
        return taken

    modules = (agentlace.data.replay_buffer, agentlace.data.storage, agentlace.data.frame_windows)
    for module in modules:
        for name in {"take_rows", "take_all"} & vars(module).keys():
            monkeypatch.setattr(module, name, slow_take)
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample, store, 16)
        assert reading.wait(WAIT_S)
        put(store, chunk([sealed(i) for i in range(64, 200)]))
        go_on.set()
        transitions = sampling.result(WAIT_S)
    assert not torn(transitions)
    assert min(int(t["n"]) for t in transitions) >= 136


def test_rows_that_are_torn_again_and_again_are_read_in_peace():
    """A writer that is always faster must wait in the end."""
    held = []

    class Writing:
        def __enter__(self):
            held.append(True)

        def __exit__(self, *_):
            held.pop()

    def is_torn(rows):
        return (rows % 2 == 0) & (not held)

    def draw(size):
        return np.arange(size) * 2

    batch = read_whole(3, draw, lambda rows: {"rows": rows + len(held)}, is_torn, Writing())
    assert batch["rows"].tolist() == [1, 3, 5]


def test_sequences_are_of_one_trajectory_while_it_is_overwritten():
    store = next(m for m in STORES if m.__name__ == "trajectory_store")(60)
    window = SequenceSampler(begin=-3, end=4, source="n")
    store.register_sample_config("window", {"n": window, "here": SequenceSampler(True, source="n")})
    stop = threading.Event()
    lengths = [3, 17, 1, 8, 2, 25]

    def insert():
        number = 0
        while not stop.is_set():
            for length in lengths:
                rows = [sealed(0) | {"n": np.int64(number + i)} for i in range(length)]
                put(store, chunk([{**r, "dones": i == length - 1} for i, r in enumerate(rows)]))
                number += 1000

    with ThreadPoolExecutor(1) as pool:
        inserting = pool.submit(insert)
        try:
            assert store.wait_until(lambda: store._sample_end_idx > 0, WAIT_S)
            for _ in range(500):
                data, mask = store.sample("window", 64)
                there, n = mask["n"], data["n"]
                assert (n // 1000 == data["here"][:, None] // 1000).all()
                steps = np.diff(n, axis=1)
                assert (steps[there[:, 1:] & there[:, :-1]] == 1).all()
        finally:
            stop.set()
        inserting.result(WAIT_S)
