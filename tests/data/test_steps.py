"""Steps of RLDS episodes become transitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlace import DecodeError
from agentlace.data.steps import count, pair, stacked


def episode(n, terminal=False, first=0):
    """Steps whose observation is their number, and whose action and reward are ten times that."""
    return [
        {
            "observation": {"x": np.float32(first + t), "pixel": np.full((2, 2), t, np.uint8)},
            "action": np.float32([10 * (first + t)] if t < n else [0]),
            "reward": 10.0 * (first + t) if t < n else 0.0,
            "is_first": t == 0,
            "is_last": t == n,
            "is_terminal": terminal and t == n,
        }
        for t in range(n + 1)
    ]


def without(steps, *keys):
    return [{k: v for k, v in step.items() if k not in keys} for step in steps]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_action_lies_between_what_was_seen_before_and_after(n, terminal):
    columns, at = pair(stacked(episode(n, terminal)))
    assert at.tolist() == list(range(n))
    x, after = columns["observations"]["x"], columns["next_observations"]["x"]
    assert x.tolist() == list(range(n)) and after.tolist() == list(range(1, n + 1))
    assert columns["actions"].ravel().tolist() == columns["rewards"].tolist() == (10 * x).tolist()
    assert columns["masks"].tolist() == [1] * (n - 1) + [0 if terminal else 1]
    assert columns["dones"].tolist() == [False] * (n - 1) + [True]
    assert (columns["rewards"].dtype, columns["masks"].dtype) == (np.float32, np.float32)
    assert columns["next_observations"]["pixel"].base is columns["observations"]["pixel"].base


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5), st.data())
def test_nothing_leads_over_the_seam_of_episodes_that_were_merged(parts, data):
    """The seam is told by either flag, or by both."""
    steps = [s for i, (n, end) in enumerate(parts) for s in episode(n, end, 100 * i)]
    steps = without(steps, *data.draw(st.sampled_from([(), ("is_first",), ("is_last",)])))
    columns, at = pair(stacked(steps))
    expected = [100 * i + t for i, (n, _) in enumerate(parts) for t in range(n)]
    assert columns["observations"]["x"].tolist() == expected
    assert columns["next_observations"]["x"].tolist() == [x + 1 for x in expected]
    ends = [i for i, x in enumerate(expected) if x % 100 == parts[x // 100][0] - 1]
    assert np.flatnonzero(columns["dones"]).tolist() == ends
    terminal = [i for i, (_, end) in zip(ends, parts, strict=True) if end]
    assert np.flatnonzero(columns["masks"] == 0).tolist() == terminal
    assert [steps[i]["observation"]["x"] for i in at] == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_a_discount_of_0_in_the_middle_is_kept_unless_all_are_0(terminal):
    steps = episode(4, terminal)
    for discounts, masks in (([1, 0, 1, 0, 0], [1, 0, 1, 1]), ([0] * 5, [1, 1, 1, 1])):
        for step, discount in zip(steps, discounts, strict=True):
            step["discount"] = np.float32(discount)
        columns, _ = pair(stacked(steps))
        assert columns["masks"].tolist() == [*masks[:3], 0 if terminal else 1]
        assert columns["dones"].tolist() == [False, False, False, True]


def test_a_step_alone_and_no_step_are_no_transition():
    for steps in (episode(0), episode(0, terminal=True)):
        columns, at = pair(stacked(steps))
        assert len(at) == len(columns["rewards"]) == len(columns["observations"]["pixel"]) == 0
    assert stacked([]) == {} and count({}) == 0


def test_what_steps_need_and_what_they_may_lack():
    steps = episode(3, terminal=True)
    bare = without(steps, "reward", "is_first", "is_last", "is_terminal")
    columns, _ = pair(stacked(bare))
    assert columns["rewards"].tolist() == [0, 0, 0] and columns["masks"].tolist() == [1, 1, 1]
    assert columns["dones"].tolist() == [False, False, True]
    for key in ("observation", "action"):
        with pytest.raises(DecodeError, match=f"no '{key}', only"):
            pair(stacked(without(steps, key)))


def test_shapes_that_change_from_step_to_step_are_kept():
    columns = stacked([{"boxes": np.zeros((i, 4)), "text": "no" * i} for i in range(3)])
    assert [boxes.shape for boxes in columns["boxes"]] == [(0, 4), (1, 4), (2, 4)]
    assert columns["text"].tolist() == ["", "no", "nono"]
