"""n-step returns against sums made row by row."""

import numpy as np
import pytest

from agentlace.data.n_step import NStepSampler
from agentlace.data.trajectory_buffer import DataShape, TrajectoryBuffer

RL = [
    DataShape("rewards"),
    DataShape("masks"),
    DataShape("next_observations", dtype="int64"),
]


def naive(rows, t, n, discount):
    """Return the n-step return of row t of one trajectory of (reward, mask)."""
    total, power = 0.0, 1.0
    for k, (reward, mask) in enumerate(rows[t : t + n]):
        total += power * reward
        power *= discount
        if not mask:
            return total, 0.0, k + 1
    return total, power, min(n, len(rows) - t)


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("use_jax", [False, True])
def test_returns_stop_and_bootstrap_where_they_must(n, discount, use_jax):
    if use_jax:
        pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    buffer = TrajectoryBuffer(100, RL, use_jax=use_jax)
    truncated = [(r, 1.0) for r in rng.normal(size=7)]
    terminated = [(r, float(i < 5)) for i, r in enumerate(rng.normal(size=6))]
    through = [(r, float(i != 2)) for i, r in enumerate(rng.normal(size=6))]  # goes on after
    running = [(r, 1.0) for r in rng.normal(size=4)]
    trajectories, number = [truncated, terminated, through, running], 0
    for rows in trajectories:
        for i, (reward, mask) in enumerate(rows):
            number += 1
            end = rows is not running and i == len(rows) - 1
            row = {"rewards": reward, "masks": mask, "next_observations": number}
            buffer.insert(row, end_of_trajectory=end)
    buffer.register_sample_config("n", {"n": NStepSampler(n, discount)})
    data, mask = buffer.sample("n", 0, force_indices=np.arange(number))
    found = {key: np.asarray(value) for key, value in data["n"].items()}
    row = 0
    for rows in trajectories:
        for t in range(len(rows)):
            total, power, steps = naive(rows, t, n, discount)
            assert np.isclose(found["rewards"][row], total, atol=1e-5)
            assert np.isclose(found["discounts"][row], power)
            assert found["steps"][row] == steps
            assert found["next_observations"][row] == row + steps
            row += 1
    assert np.asarray(mask["n"]["rewards"]).all()


@pytest.mark.parametrize("args", [(0, 0.9), (1, 1.1), (1, -0.1)])
def test_n_steps_that_cannot_be(args):
    with pytest.raises(ValueError, match="discount"):
        NStepSampler(*args)
