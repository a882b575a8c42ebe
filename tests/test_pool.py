"""Memory that is used again: never while anything refers to it, and not too much of it."""

import os
import threading

import numpy as np
import pytest

from agentlace.pool import _CAN_COUNT, Pool

LEAST, MOST = 1 << 10, 1 << 20
SIZE = 1 << 12


@pytest.fixture
def pool():
    return Pool(LEAST, MOST)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("size", [LEAST, SIZE, MOST])
def test_memory_that_nothing_refers_to_is_used_again(pool, size):
    assert _CAN_COUNT
    array = pool.memory(size)
    before = address(array)
    del array
    again = pool.memory(size)
    assert address(again) == before and again.shape == (size,) and again.flags.writeable


@pytest.mark.parametrize(
    "keep",
    [
        lambda a: a,
        lambda a: a[5:],
        lambda a: a[::-7],
        lambda a: a.reshape(2, -1).T[3:, 1],
        lambda a: a.view(np.float32)[:1],
        lambda a: a.base,
        lambda a: np.broadcast_to(a, (3, SIZE)),
        lambda a: np.frombuffer(a, np.uint16),
        memoryview,
        lambda a: memoryview(a)[3:4],
        lambda a: iter(a),
        lambda a: a.flat,
        lambda a: a.__array_interface__ and a.ctypes,
        lambda a: [{"x": (a[:1],)}],
        lambda a: a[1:].__getitem__,
        lambda a: np.from_dlpack(a),
    ],
)
def test_whatever_keeps_an_array_alive_keeps_its_memory(pool, keep):
    array = pool.memory(SIZE)
    array[:] = 7
    before, kept = address(array), keep(array)
    del array
    others = [pool.memory(SIZE) for _ in range(3)]
    assert before not in [address(other) for other in others]
    del kept
    assert address(pool.memory(SIZE)) == before


@pytest.mark.parametrize(
    "dtype", ["u1", "?", ">f4", "c16", "M8[ns]", "U3", "S5", "V3", [("a", "i2"), ("b", "f8")]]
)
@pytest.mark.parametrize("shape", [(64, 16), (0, 5), (3,), ()])
def test_arrays_are_as_numpy_makes_them(pool, shape, dtype):
    dtype = np.dtype(dtype)
    array = pool.empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    array[...] = np.zeros((), dtype)
    assert (array == np.zeros((), dtype)).all()


def test_memory_that_is_kept_is_bounded(pool):
    for size in (MOST // 3, MOST // 2, MOST // 2, MOST):
        assert pool.memory(size).nbytes == size
        assert sum(kept.size for kept in pool._kept) <= MOST
    assert pool.memory(MOST + 1).base is None
    assert pool.memory(LEAST - 1).base is None


def test_who_keeps_more_than_the_pool_has_memory_of_its_own(pool):
    held = [pool.memory(MOST // 4) for _ in range(20)]
    for number, array in enumerate(held):
        array[:] = number
    assert len({address(array) for array in held}) == len(held)
    assert all((array == number).all() for number, array in enumerate(held))


def test_threads_never_get_the_same_memory(pool):
    """Each writes its own number everywhere and looks whether it is still there."""
    spoilt, start = [], threading.Barrier(4)

    def use(number):
        held = []
        start.wait()
        for _ in range(400):
            held.append(pool.memory(SIZE))
            held[-1][:] = number
            spoilt.extend(array for array in held if (array != number).any())
            del held[: len(held) - 3]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not spoilt


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_gets_memory_whoever_held_the_lock(pool):
    array = pool.memory(SIZE)
    array[:] = 5
    with pool._lock:
        child = os.fork()
        if child == 0:
            pool.memory(SIZE)[:] = 9
            os._exit(0 if (array == 5).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 5).all()


def test_a_jax_array_that_is_made_of_memory_without_a_copy_keeps_it(pool):
    jax = pytest.importorskip("jax")
    array = pool.memory(SIZE)
    before = address(array)
    aligned = array[-before % 64 :][: SIZE // 2]
    aligned[:] = 7
    on_device = jax.device_put(aligned, jax.devices("cpu")[0])
    assert on_device.unsafe_buffer_pointer() == address(aligned)
    del array, aligned
    others = [pool.memory(SIZE) for _ in range(3)]
    for other in others:
        other[:] = 9
    assert before not in [address(other) for other in others]
    assert (np.asarray(on_device) == 7).all()
