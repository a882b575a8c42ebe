"""The sum tree against sums computed anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlace.data.sum_tree import SumTree


@settings(max_examples=100, deadline=None)
@given(
    capacity=st.integers(1, 70),
    updates=st.lists(st.lists(st.tuples(st.integers(0, 69), st.integers(0, 9)), max_size=20)),
    data=st.data(),
)
def test_it_finds_what_the_running_sum_passes(capacity, updates, data):
    tree, plain = SumTree(capacity), np.zeros(capacity)
    for update in updates:
        positions = np.array([p % capacity for p, _ in update], np.int64)
        values = np.array([v for _, v in update], float)
        tree[positions] = values
        for position, value in zip(positions, values, strict=True):
            plain[position] = value
    assert tree.total == plain.sum()
    assert tree[np.arange(capacity)].tolist() == plain.tolist()
    if plain.sum():
        fractions = st.lists(st.floats(0, 1, exclude_max=True), min_size=1)
        targets = np.array(data.draw(fractions)) * plain.sum()
        found = tree.find(targets)
        assert found.tolist() == np.searchsorted(plain.cumsum(), targets, "right").tolist()


@pytest.mark.parametrize("capacity", [1, 5, 8])
def test_a_target_at_the_very_end_finds_no_empty_position(capacity):
    tree = SumTree(capacity)
    tree[np.array([0])] = 0.1
    assert tree.find(np.array([0.1, 0.2])).tolist() == [0, 0]
