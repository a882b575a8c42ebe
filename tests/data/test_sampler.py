"""What the samplers return, on trajectories of which everything is known."""

import numpy as np
import pytest

from agentlace.data.sampler import FutureSampler, LatestSampler, PrioritySampler, SequenceSampler
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer

EXPONENTIAL = FutureSampler.Distribution.EXPONENTIAL


def numbered(lengths, capacity=1000, ended=True, **kwargs):
    """Return a buffer whose rows hold their number."""
    buffer = TrajectoryBuffer(capacity, [DataShape("x", dtype="int64")], **kwargs)
    number = 0
    for i, length in enumerate(lengths):
        for _ in range(length):
            buffer.insert({"x": number})
            number += 1
        if ended or i < len(lengths) - 1:
            buffer.end_trajectory()
    return buffer


def sample(buffer, sampler, rows=None, size=0, span=(0, 1)):
    buffer.register_sample_config("s", {"x": LatestSampler(), "s": sampler}, span)
    data, mask = buffer.sample("s", size, force_indices=rows)
    return data["x"], data["s"], mask["s"]


# -- sequences -------------------------------------------------------------------------------------


def test_a_history_is_masked_and_padded_with_the_first_row():
    buffer = numbered([4, 5])
    _, data, mask = sample(buffer, SequenceSampler(begin=-3, end=1, source="x"), [0, 2, 4, 8])
    assert data.tolist() == [[0, 0, 0, 0], [0, 0, 1, 2], [4, 4, 4, 4], [5, 6, 7, 8]]
    assert mask.sum(axis=1).tolist() == [1, 3, 1, 4]
    assert mask[1].tolist() == [False, True, True, True]


def test_a_chunk_is_masked_and_padded_with_the_last_row():
    buffer = numbered([4, 5], ended=False)
    _, data, mask = sample(buffer, SequenceSampler(begin=0, end=3, source="x"), [1, 3, 4, 8])
    assert data.tolist() == [[1, 2, 3], [3, 3, 3], [4, 5, 6], [8, 8, 8]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [True] * 3, [True, False, False]]


def test_a_history_does_not_reach_over_the_write_head():
    buffer = numbered([10, 5], capacity=12)
    _, data, mask = sample(buffer, SequenceSampler(begin=-2, end=1, source="x"), [3, 5])
    assert data.tolist() == [[3, 3, 3], [3, 4, 5]]
    assert mask.tolist() == [[False, False, True], [True] * 3]


def test_one_row_can_be_squeezed():
    _, data, mask = sample(numbered([4]), SequenceSampler(True, 1, 2, "x"), [0, 3])
    assert data.tolist() == [1, 3] and mask.tolist() == [True, False]


@pytest.mark.parametrize("args", [(False, 1, 1), (False, 2, 0), (True, 0, 2)])
def test_sequences_that_cannot_be(args):
    with pytest.raises(ValueError, match="sequence"):
        SequenceSampler(*args)


# -- the future ------------------------------------------------------------------------------------


def test_a_uniform_future_is_uniform_up_to_the_end():
    buffer = numbered([10, 10])
    x, goal, mask = sample(buffer, FutureSampler(source="x"), np.full(8000, 6))
    assert (goal["data"] - x == goal["offset"]).all() and mask["data"].all()
    offsets, counts = np.unique(goal["offset"], return_counts=True)
    assert offsets.tolist() == [0, 1, 2, 3] and counts.min() > 1800


def test_a_future_has_a_maximum_and_stays_in_its_trajectory():
    buffer = numbered([10, 10], ended=False)
    sampler = FutureSampler(max_future=3, source="x")
    x, goal, _ = sample(buffer, sampler, size=3000)
    offset = goal["data"] - x
    assert set(offset.tolist()) == {0, 1, 2}
    assert (x // 10 == goal["data"] // 10).all()


def test_an_exponential_future_has_its_mean_and_ends_with_the_trajectory():
    buffer = numbered([1000])
    sampler = FutureSampler(EXPONENTIAL, lambda_=20.0, source="x")
    _, goal, _ = sample(buffer, sampler, np.zeros(20_000, int))
    expected = 1 / (np.exp(1 / 20) - 1)  # of what is rounded down
    assert abs(goal["offset"].mean() - expected) < 0.6
    _, goal, _ = sample(buffer, sampler, np.full(2000, 998))
    assert set(goal["data"].tolist()) == {998, 999}


def test_futures_that_cannot_be():
    with pytest.raises(ValueError, match="lambda_"):
        FutureSampler(EXPONENTIAL)
    with pytest.raises(ValueError, match="max_future"):
        FutureSampler(max_future=0)


# -- priorities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_rows_come_in_proportion_to_their_priorities(alpha):
    buffer = numbered([10, 10])
    sampler = PrioritySampler(alpha=alpha, beta=1.0)
    sample(buffer, sampler, size=1)
    priorities = np.arange(1.0, 21.0)
    sampler.update_priorities(np.arange(20), priorities)
    x, drawn, mask = sample(buffer, sampler, size=50_000)
    expected = priorities**alpha / (priorities**alpha).sum()
    found = np.bincount(x, minlength=20) / len(x)
    assert np.abs(found - expected).max() < 0.005
    assert drawn["indices"].tolist() == x.tolist() and mask["weights"].all()
    weights = (1 / expected[x]) / (1 / expected[x]).max()
    assert np.allclose(drawn["weights"], weights, rtol=1e-5)


def test_beta_tempers_the_weights():
    buffer = numbered([4])
    sampler = PrioritySampler([1, 2, 4, 8], beta=0.5)
    x, drawn, _ = sample(buffer, sampler, size=1000)
    assert np.allclose(drawn["weights"], (1 / 2.0**x) ** 0.5, rtol=1e-5)
    sampler.beta = 0.0
    assert sample(buffer, sampler, size=50)[1]["weights"].tolist() == [1] * 50


def test_a_priority_of_0_is_never_drawn():
    buffer = numbered([10])
    sampler = PrioritySampler()
    sample(buffer, sampler, size=1)
    sampler.update_priorities([*range(10)], [0, 1] * 5)
    x, _, _ = sample(buffer, sampler, size=500)
    assert set(x.tolist()) == {1, 3, 5, 7, 9}
    sampler.update_priorities(np.arange(10), 0)
    with pytest.raises(ValueError, match="priorities of all rows are 0"):
        sample(buffer, sampler, size=1)


def test_new_rows_get_the_highest_priority_and_old_ones_leave():
    buffer = numbered([10], capacity=10)
    sampler = PrioritySampler()
    sample(buffer, sampler, size=1)
    sampler.update_priorities(np.arange(10), np.full(10, 1.0))
    sampler.update_priorities([3], [50.0])
    for i in range(10, 14):
        buffer.insert({"x": i})
    x, _, _ = sample(buffer, sampler, size=10_000)
    found = np.bincount(x, minlength=14) / len(x)
    assert found[:4].max() == 0
    assert np.allclose(found[4:10], 1 / 206, atol=0.004)
    assert np.allclose(found[10:], 50 / 206, atol=0.02)
    sampler.update_priorities([2, 3, 13], [1000.0, 1000.0, 0.0])  # two of them have left
    assert set(sample(buffer, sampler, size=2000)[0].tolist()) <= set(range(4, 13))


def test_many_laps_between_two_samples_leave_no_trace():
    buffer = numbered([7], capacity=7)
    sampler = PrioritySampler()
    for laps in (1, 3, 10):
        for i in range(laps * 7 + 3):
            buffer.insert({"x": i}, end_of_trajectory=i % 3 == 2)
        sample(buffer, sampler, size=1)
        begin, end = buffer._sample_begin_idx, buffer._sample_end_idx
        assert sampler._tree.total == end - begin


def test_a_range_keeps_the_proportions_of_those_that_fit():
    buffer = numbered([5, 5])
    sampler = PrioritySampler([1, 1, 1, 1, 9, 1, 1, 1, 1, 9])
    x, _, _ = sample(buffer, sampler, size=8000, span=(0, 2))
    counts = np.bincount(x, minlength=10)
    assert counts[[4, 9]].tolist() == [0, 0] and counts[[0, 3, 5, 8]].min() > 700


def test_priorities_that_cannot_be():
    sampler = PrioritySampler()
    sample(numbered([4]), sampler, size=1)
    for bad in ([-1.0], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="finite"):
            sampler.update_priorities([1], bad)
    with pytest.raises(ValueError, match="alpha"):
        PrioritySampler(alpha=-1)
