"""Episodes for tests: each value tells which episode and step it belongs to."""

import numpy as np

from agentlace.rlds.episode import episode_from_transitions

ENDINGS = ("terminated", "truncated", "aborted")


def observation(e, t):
    rng = np.random.default_rng([e, t])
    return {
        "state": np.float32([e, t, e * t]),
        "wrist": rng.integers(256, size=(32, 40, 3), dtype=np.uint8),
    }


def transitions(e, n, observe=observation):
    return [
        {
            "observations": observe(e, t),
            "next_observations": observe(e, t + 1),
            "actions": np.float32([e, -t]),
            "rewards": np.float32(e + t / 8),
            "language_instruction": f"lift cube {e}",
            "policy_version": np.int64(t),
            "is_intervention": np.bool_(t % 2),
        }
        for t in range(n)
    ]


def episode(e, n, ending=None, observe=observation):
    ending = ending or ENDINGS[e % len(ENDINGS)]
    return episode_from_transitions(transitions(e, n, observe), ending, {"robot": f"arm {e}"})


def episodes(lengths=(5, 1, 3, 8), observe=observation):
    return [episode(e, n, observe=observe) for e, n in enumerate(lengths)]


def expected(lengths=(5, 1, 3, 8)):
    """Return (episode, step, is the last, mask) of the transitions of :func:`episodes`."""
    return [
        (e, t, t == n - 1, 0.0 if t == n - 1 and ENDINGS[e % 3] == "terminated" else 1.0)
        for e, n in enumerate(lengths)
        for t in range(n)
    ]


def check_transition(row, e, t, mask):
    """Compare each value of a transition, every pixel included."""
    for key, step in (("observations", t), ("next_observations", t + 1)):
        wanted = observation(e, step)
        assert row[key].keys() == wanted.keys()
        for name in wanted:
            assert row[key][name].dtype == wanted[name].dtype
            assert np.array_equal(row[key][name], wanted[name]), (key, name, e, t)
    assert np.array_equal(row["actions"], np.float32([e, -t]))
    assert (row["rewards"], row["masks"]) == (np.float32(e + t / 8), mask)
    assert row["rewards"].dtype == row["masks"].dtype == np.float32
