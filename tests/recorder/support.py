"""Transitions, chunks and episodes, as the recorder's tests need them."""

import numpy as np

from agentlace.codec import ChunkDecoder, Mark, encode_chunk
from agentlace.codec.mark import BEGIN, DISCARD, END
from agentlace.recorder.builder import EpisodeBuilder
from agentlace.transport.streams import StreamId

FIRST = 1_000
"""An incarnation."""


def row(n, last=False, **more):
    """Return transition n of an unbroken episode."""
    return {
        "observations": np.full(3, n, np.float32),
        "next_observations": np.full(3, n + 1, np.float32),
        "actions": np.full(2, n, np.float32),
        "rewards": np.float32(n),
        "dones": last,
        **more,
    }


def numbers(rows):
    return [int(row["rewards"]) for row in rows]


class Feed:
    """Hands transitions and marks to a builder as a consumer does, numbered one by one."""

    def __init__(self, builder=None, incarnation=FIRST, number=0):
        self.builder = builder or EpisodeBuilder()
        self.incarnation = incarnation
        self.number = number
        self.episode = 0
        self.finished = []

    def rows(self, *rows, meta=None):
        self.number += len(rows)
        frame = encode_chunk(list(rows), meta or {})
        chunk = ChunkDecoder().decode(bytearray(bytes(frame)))
        return self._note(self.builder.add(chunk, self.at))

    def begin(self, **metadata):
        self.episode += 1
        return self._mark(Mark(BEGIN, None, self.episode, 0.0, metadata))

    def end(self, how, **metadata):
        return self._mark(Mark(END, how, self.episode, 0.0, metadata))

    def discard(self):
        return self._mark(Mark(DISCARD, None, self.episode, 0.0))

    def skip(self, count):
        """Lose so many numbers."""
        self.number += count

    @property
    def at(self):
        return StreamId(self.incarnation, self.number)

    def _mark(self, mark):
        self.number += 1
        return self._note(self.builder.mark(mark, self.at))

    def _note(self, finished):
        self.finished += finished
        return finished

    @property
    def episodes(self):
        """What is finished: the rewards, how it ended, and why."""
        return [(numbers(f.rows), f.ending, f.reason) for f in self.finished]
