"""How an episode ends, as transitions tell it; and whether one observation is another."""

import numpy as np
import pytest

from agentlace.recorder.boundaries import Continuity, is_same, told_ending

from .support import row


@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ({"dones": False}, None),
        ({"dones": True}, "terminated"),
        ({"dones": np.array([1.0])}, "terminated"),
        ({"dones": True, "masks": 0.0}, "terminated"),
        ({"dones": True, "masks": 1.0}, "truncated"),
        ({"dones": True, "masks": np.ones((1,), np.float32)}, "truncated"),
        ({"dones": True, "truncates": True}, "truncated"),
        ({"dones": False, "truncates": True, "masks": 1.0}, "truncated"),
        ({"masks": 0.0}, "terminated"),
        ({"masks": 1.0}, None),
        ({"dones": False, "masks": 0.0}, None),  # it says that the trajectory goes on
        ({"terminated": True, "truncated": False}, "terminated"),
        ({"terminated": False, "truncated": True}, "truncated"),
        ({"terminated": False, "truncated": False}, None),
        ({"end_of_trajectory": True}, "truncated"),
        ({"end_of_trajectory": True, "dones": True}, "terminated"),
        ({"end_of_trajectory": True, "dones": False, "masks": 0.0}, "terminated"),
        ({"end_of_trajectory": False, "dones": True}, None),
        ({"dones": None}, None),
        ({"dones": [[1], [1, 2]]}, None),
        ({}, None),
    ],
    ids=str,
)
def test_how_a_transition_ends_its_episode(flags, ending):
    assert told_ending(flags) == ending


SAME = [
    (np.arange(3), np.arange(3)),
    (np.array([np.nan, 1.0]), np.array([np.nan, 1.0])),
    (np.array(["a", "b"]), np.array(["a", "b"])),
    ({"a": np.ones(2), "b": (1, "x")}, {"b": (1, "x"), "a": np.ones(2)}),
    (np.float32(2), np.float32(2)),
    (float("nan"), float("nan")),
    ([1, 2], [1, 2]),
    (None, None),
    (np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0).reshape(2, 3)),
]
DIFFERENT = [
    (np.arange(3), np.arange(3) + 1),
    (np.arange(3), np.arange(3, dtype=np.int32)),
    (np.arange(3), np.arange(3).reshape(1, 3)),
    (np.zeros(1), -np.zeros(1)),
    ({"a": 1}, {"b": 1}),
    ({"a": 1}, {"a": 1, "b": 1}),
    ((1, 2), [1, 2]),
    ([1], [1, 2]),
    ("a", "b"),
    (1, 1.0),
    (np.zeros(2), None),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one, other):
    assert is_same(one, other) and is_same(other, one) and is_same(one, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_the_same(one, other):
    assert not is_same(one, other) and not is_same(other, one)


class TestContinuity:
    def test_a_break_ends_an_episode(self):
        continuity = Continuity()
        assert not continuity.note(True)
        assert continuity.note(False)

    def test_what_never_continues_tells_nothing(self):
        continuity = Continuity()
        assert not any(continuity.note(False) for _ in range(10))

    def test_what_mostly_breaks_tells_nothing(self):
        continuity = Continuity()
        ends = [continuity.note(n % 4 == 0) for n in range(100)]
        assert not any(ends[8:])

    def test_short_episodes_are_told_apart(self):
        continuity = Continuity()
        ends = [continuity.note(n % 2 == 0) for n in range(100)]
        assert all(ends[1::2]) and not any(ends[::2])


def test_the_tests_own_rows_continue():
    assert is_same(row(0)["next_observations"], row(1)["observations"])
