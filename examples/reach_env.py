"""A reaching task with a sparse reward, and an expert that solves it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

UPPER_M, FORE_M = 0.1, 0.11
"""Lengths of the arm's two links."""
NEAR_M = 0.015
SCALE = np.array([1, 1, 1, 1, 5, 5, 0.1, 0.1, 10, 10])
"""Brings cosines, sines, target, joint velocities and distance to a like size."""
REWARD = 10.0
"""Large beside the bonus for entropy that an agent begins with."""
STIFFNESS, DAMPING, SOFTNESS = 2.0, 0.15, 1e-3


class SparseReach(gym.Wrapper):
    """MuJoCo's Reacher, whose reward is 0 until the fingertip meets the target.

    The episode terminates there, or is cut after 50 steps.
    """

    def __init__(self) -> None:
        super().__init__(gym.make("Reacher-v5"))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        observation, info = self.env.reset(**kwargs)
        return observation * SCALE, info

    def step(self, action: np.ndarray) -> tuple:
        observation, _, _, truncated, info = self.env.step(action)
        reached = bool(np.linalg.norm(observation[8:10]) < NEAR_M)
        return observation * SCALE, REWARD * reached, reached, truncated and not reached, info


def expert(observation: np.ndarray) -> np.ndarray:
    """Return the action (2,) that pulls the fingertip to the target and damps the joints."""
    cos, sin, _, velocity, from_target = np.split(observation / SCALE, [2, 4, 6, 8])
    both_cos = cos[0] * cos[1] - sin[0] * sin[1]
    both_sin = sin[0] * cos[1] + cos[0] * sin[1]
    fore = FORE_M * np.array([-both_sin, both_cos])
    upper = UPPER_M * np.array([-sin[0], cos[0]])
    jacobian = np.stack([upper + fore, fore], axis=1)
    # Damped least squares: near the stretched arm the inverse would be without bound.
    turn = np.linalg.solve(jacobian.T @ jacobian + SOFTNESS * np.eye(2), jacobian.T @ -from_target)
    torque = STIFFNESS * turn - DAMPING * velocity
    return np.clip(torque, -1, 1).astype(np.float32)
