"""The compiled loop that copies rows into a batch."""

import sys

import numpy as np
import pytest

from agentlace import native


@pytest.fixture
def gather():
    if native.gather is None:
        pytest.skip("nothing is compiled here")
    return native.gather


@pytest.mark.parametrize("workers", [-1, 1, 2, 3, 8, 1000])
@pytest.mark.parametrize("row", [1, 15, 4095, 4096, 4099, 50_003])
@pytest.mark.parametrize("shift", [0, 1, 8, 17])
def test_gathered_rows(gather, workers, row, shift):
    """Of any size, from and to any address, few or so many that they go past the caches."""
    rng = np.random.default_rng(0)
    for n in (1, 5, (20 << 20) // row if row > 1000 else 999):
        rows = rng.integers(0, 30, n)
        source = rng.integers(0, 255, 30 * row + shift).astype(np.uint8)[shift:]
        whole = np.full(n * row + 64 + shift, 77, np.uint8)
        target = whole[shift : shift + n * row]
        gather([source], [target], rows, workers)
        assert np.array_equal(target.reshape(n, row), source.reshape(30, row)[rows])
        assert (whole[:shift] == 77).all() and (whole[shift + n * row :] == 77).all()


@pytest.mark.parametrize(
    ("source", "target", "rows"),
    [
        (100, 30, [0, 1, 10]),
        (100, 30, [0, -1, 1]),
        (100, 30, [0, 1, 2**62]),
        (100, 31, [0, 1, 2]),
        (100, 0, [0, 1, 2]),
        (9, 30, [0, 0, 0]),
        (0, 30, [0, 0, 0]),
    ],
)
def test_nothing_is_gathered_that_does_not_fit(gather, source, target, rows):
    fitting = np.ones(100, np.uint8), np.zeros(30, np.uint8)
    arrays = np.ones(source, np.uint8), np.zeros(target, np.uint8)
    with pytest.raises(ValueError, match="not there"):
        gather([fitting[0], arrays[0]], [fitting[1], arrays[1]], np.array(rows), 2)
    assert not fitting[1].any() and not arrays[1].any()


def test_what_cannot_be_gathered(gather):
    source, target, rows = np.ones(100, np.uint8), np.zeros(30, np.uint8), np.arange(3)
    fixed = target.copy()
    fixed.flags.writeable = False
    for sources, targets in (
        ([source], [fixed]),
        ([source[::2]], [target]),
        ([source], [np.zeros(60, np.uint8)[::2]]),
        ([source, None], [target, target]),
        ([source, source], [target, None]),
        ([source], []),
        ([source] * (native.MAX_LEAVES + 1), [target] * (native.MAX_LEAVES + 1)),
    ):
        with pytest.raises((ValueError, BufferError, TypeError)):
            gather(sources, targets, rows, 1)
    for args in (
        ((source,), [target], rows, 1),
        ([source], [target], rows),
        ([source], 3, rows, 1),
    ):
        with pytest.raises((TypeError, SystemError)):
            gather(*args)
    gather([], [], rows, 2)
    gather([source], [np.zeros(0, np.uint8)], rows[:0], 2)
    references = sys.getrefcount(source), sys.getrefcount(target), sys.getrefcount(rows)
    for _ in range(50):
        gather([source], [target], rows, 2)
    assert references == (sys.getrefcount(source), sys.getrefcount(target), sys.getrefcount(rows))
