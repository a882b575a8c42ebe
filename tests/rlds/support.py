"""Episodes that are known by their number, and how to compare them; no pytest in here."""

import numpy as np

from agentlace.rlds.episode import episode_from_transitions

ENDINGS = ("terminated", "truncated", "aborted")


def observation(rng):
    return {
        "state": rng.normal(size=(1, 5)).astype(np.float32),
        "joints": rng.normal(size=3),
        "wrist": rng.integers(256, size=(1, 16, 16, 3), dtype=np.uint8),
        "grip": {"gray": rng.integers(256, size=(9, 8, 1), dtype=np.uint8)},
    }


def transitions(number, n=None):
    """The transitions of the episode with this number; 2 to 5 of them."""
    rng = np.random.default_rng(number)
    n = 2 + number % 4 if n is None else n
    terminated = ENDINGS[number % 3] == "terminated"
    rows, now = [], observation(rng)
    for i in range(n):
        after = observation(rng)
        rows.append(
            {
                "observations": now,
                "actions": rng.normal(size=(2, 2)).astype(np.float32),
                "next_observations": after,
                "rewards": np.float32(rng.normal()),
                "masks": np.float32(not (terminated and i == n - 1)),
                "dones": i == n - 1,
                "language_instruction": f"pick {number}",
                "policy_version": number,
                "is_intervention": np.bool_(i % 2),
                "wall_time_ns": 1_700_000_000_000_000_000 + i,
            }
        )
        now = after
    return rows


def episode(number, n=None):
    metadata = {"number": number, "actor": f"robot {number % 2}"}
    return episode_from_transitions(transitions(number, n), ENDINGS[number % 3], metadata)


def assert_same(found, wanted, path=""):
    """Compare two trees, each leaf in value, shape and dtype."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), f"{path}: {set(found) ^ set(wanted)}"
        for key in wanted:
            assert_same(found[key], wanted[key], f"{path}/{key}")
        return
    mine, theirs = np.asarray(found), np.asarray(wanted)
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), path
    assert np.array_equal(mine, theirs), path


def assert_same_episode(found, wanted):
    assert found.ending == wanted.ending
    assert found.bare_observation == wanted.bare_observation
    assert_same(dict(found.metadata), dict(wanted.metadata))
    assert len(found) == len(wanted)
    for i, (mine, theirs) in enumerate(zip(found.steps, wanted.steps, strict=True)):
        assert_same(mine, theirs, f"step {i}")
