"""Our replay buffer, and numpy's own indexing of the same arrays: the limit."""

import numpy as np

from agentlace.data.columns import map_leaves
from agentlace.data.replay_buffer import ReplayBuffer
from benchmarks import payloads, worker

POOL = 200
CHUNK = 1000


def filled(kind, rows):
    """Return a full buffer. The rows repeat: gathering does not depend on what is gathered."""
    few = payloads.ROWS[kind](POOL)
    stacked = map_leaves(lambda *column: np.stack(column), *few)
    some = map_leaves(lambda a: np.concatenate([a] * (CHUNK // POOL)), stacked)
    buffer = ReplayBuffer(rows, seed=0)
    for _ in range(rows // CHUNK):
        buffer.insert_columns(some, CHUNK)
    return buffer


def buffer(kind, rows):
    store = filled(kind, rows)
    rng = np.random.default_rng(1)

    def sample(batch, n):
        return worker.sample_us(lambda: store.sample(batch), n)

    def index(batch, n):
        """Gather with indices that were drawn before."""
        drawn = iter([rng.integers(rows, size=batch) for _ in range(n)])
        columns = []
        map_leaves(columns.append, store.dataset)

        def gather():
            at = next(drawn)
            return [column[at] for column in columns]

        return worker.sample_us(gather, n)

    worker.serve(sample=sample, index=index)


if __name__ == "__main__":
    worker.main(buffer=buffer)
