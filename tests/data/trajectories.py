"""Trajectories whose rows tell which they are, and a plain account of which may be sampled."""

import numpy as np

from agentlace.data.trajectory_buffer import DataShape

SHAPES = [
    DataShape("observations/state", (3,)),
    DataShape("actions", (2,), "int32"),
    DataShape("number", (), "int64"),
    DataShape("episode", (), "int64"),
]


def step(number, episode, **more):
    """Return row ``number`` of all, of trajectory ``episode``."""
    return {
        "observations": {"state": np.full(3, number, np.float32)},
        "actions": np.array([number, -number], np.int32),
        "number": np.int64(number),
        "episode": np.int64(episode),
        **more,
    }


class Account:
    """What a buffer must hold, kept as a list of (number, episode) by row."""

    def __init__(self, capacity, min_length):
        self.capacity, self.min_length = capacity, min_length
        self.rows, self.begin, self.high = [], 0, 0
        self.ended = []  # [begin, end) of whole trajectories

    def add(self, number, episode):
        self.rows.append((number, episode))
        self.high = max(self.high, len(self.rows))

    def end(self):
        if len(self.rows) - self.begin < self.min_length:
            del self.rows[self.begin :]
        else:
            self.ended.append((self.begin, len(self.rows)))
            self.begin = len(self.rows)

    def may_be_sampled(self):
        """Return per row that may be sampled its trajectory's [begin, end)."""
        parts = [*self.ended]
        if len(self.rows) - self.begin >= self.min_length:
            parts.append((self.begin, len(self.rows)))
        floor = self.high - self.capacity
        kept = [(max(begin, floor), end, begin) for begin, end in parts]
        return {
            row: (begin, end)
            for begin, end, whole in kept
            if end - begin >= (1 if whole == begin else self.min_length)
            for row in range(begin, end)
        }
