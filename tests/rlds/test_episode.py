"""Transitions become steps, and come back."""

import numpy as np
import pytest

from agentlace.errors import SchemaMismatch
from agentlace.rlds.episode import ENDINGS, episode_from_transitions
from tests.rlds.support import assert_same, transitions


def simple(n=3, **more):
    return [
        {
            "observations": np.float32(i),
            "actions": np.full(2, i + 1, np.float32),
            "next_observations": np.float32(i + 1),
            "rewards": 10.0 * (i + 1),
            **more,
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_n_transitions_are_n_plus_1_steps(ending):
    episode = episode_from_transitions(simple(3), ending, {"seed": 1})
    assert len(episode) == 4 and episode.ending == ending and episode.metadata == {"seed": 1}
    assert [float(s["observation"]["state"]) for s in episode.steps] == [0, 1, 2, 3]
    assert [s["action"].tolist() for s in episode.steps] == [[1, 1], [2, 2], [3, 3], [0, 0]]
    assert [float(s["reward"]) for s in episode.steps] == [10, 20, 30, 0]
    ended = 0 if ending == "terminated" else 1
    assert [float(s["discount"]) for s in episode.steps] == [1, 1, ended, 0]
    assert [s["is_first"] for s in episode.steps] == [True, False, False, False]
    assert [s["is_last"] for s in episode.steps] == [False, False, False, True]
    assert [s["is_terminal"] for s in episode.steps] == [False] * 3 + [ending == "terminated"]
    assert episode.episode_return == 60


@pytest.mark.parametrize("number", range(3))
def test_transitions_come_back(number):
    rows = transitions(number)
    episode = episode_from_transitions(rows, ENDINGS[number])
    found = episode.transitions()
    assert len(found) == len(rows)
    for mine, theirs in zip(found, rows, strict=True):
        assert_same(mine, {**theirs, "dones": np.bool_(theirs["dones"])})


def test_a_bare_observation_comes_back_bare():
    episode = episode_from_transitions(simple(2), "truncated")
    assert episode.bare_observation
    found = episode.transitions()
    assert [float(row["next_observations"]) for row in found] == [1, 2]
    nested = [
        {**row, "observations": {"state": 1}, "next_observations": {"state": 2}}
        for row in simple(1)
    ]
    episode = episode_from_transitions(nested, "truncated")
    assert not episode.bare_observation
    assert episode.transitions()[0]["next_observations"] == {"state": 2}


def test_tuples_become_dicts():
    rows = [{"observations": (1, {"a": (2,)}), "next_observations": (3, {"a": (4,)}), "actions": 0}]
    first, last = episode_from_transitions(rows, "aborted").steps
    assert first["observation"] == {"0": 1, "1": {"a": {"0": 2}}}
    assert last["observation"] == {"0": 3, "1": {"a": {"0": 4}}}


def test_masks_are_the_discount_and_what_tells_the_ending_is_no_extra():
    told = {"dones": 0, "truncates": 0, "terminated": 0, "truncated": 0, "end_of_trajectory": 0}
    more = {**told, "infos": {"x": object()}, "info": {}, "masks": np.array([0.5])}
    steps = episode_from_transitions(simple(2, **more), "truncated").steps
    assert [float(step["discount"]) for step in steps] == [0.5, 0.5, 0]
    flags = {"is_first", "is_last", "is_terminal"}
    assert set(steps[0]) == {"observation", "action", "reward", "discount", *flags}


def test_the_last_step_repeats_what_describes_and_has_zeros_for_what_counts():
    rows = simple(
        2,
        language_instruction="pick",
        policy_version=None,
        is_intervention=np.bool_(True),
        wall_time_ns=5,
        monotonic_time_ns=6,
        grasp_penalty=np.float32(-0.5),
    )
    *_, last = episode_from_transitions(rows, "truncated").steps
    assert last["language_instruction"] == "pick" and last["policy_version"] == -1
    assert (last["wall_time_ns"], last["monotonic_time_ns"]) == (5, 6)
    assert not last["is_intervention"] and last["grasp_penalty"] == 0


def test_what_is_no_episode():
    with pytest.raises(ValueError, match="at least one"):
        episode_from_transitions([], "truncated")
    with pytest.raises(ValueError, match="use one of terminated, truncated, aborted"):
        episode_from_transitions(simple(), "done")
    rows = simple(2)
    del rows[1]["actions"]
    with pytest.raises(SchemaMismatch, match="1/actions: missing"):
        episode_from_transitions(rows, "truncated")
    with pytest.raises(SchemaMismatch, match="0/is_last: a name that RLDS needs"):
        episode_from_transitions(simple(2, is_last=True), "truncated")
    with pytest.raises(SchemaMismatch, match=r"0/rewards: shape \(2,\)"):
        episode_from_transitions(simple(2, **{"rewards": np.zeros(2)}), "truncated")
