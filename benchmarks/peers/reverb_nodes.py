"""Reverb's table server, actors that insert into it, and learners that sample from it.

Runs in Reverb's own environment. Its server listens on all addresses and cannot be told
otherwise.
"""

import time

import numpy as np
import reverb
import tensorflow as tf

from benchmarks import payloads, worker

TABLE = "replay"
FLUSH_TIMEOUT_MS = 60_000


def _spec(value):
    array = np.asarray(value)
    return tf.TensorSpec(array.shape, array.dtype)


def _serve_table(port, capacity, signature):
    table = reverb.Table(
        name=TABLE,
        sampler=reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=capacity,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )
    server = reverb.Server([table], port=port)
    worker.serve_beside(server.wait)


def server(port, capacity, kind):
    _serve_table(port, capacity, tf.nest.map_structure(_spec, payloads.ROWS[kind](1)[0]))


def plain_server(port, capacity, kind):
    """Serve items without a signature: the older writer's have a dimension more."""
    _serve_table(port, capacity, None)


def _insert_whole(writer, row):
    """Insert a row that shares nothing with the next."""
    writer.append(row)
    whole = tf.nest.map_structure(lambda column: column[-1], writer.history)
    writer.create_item(TABLE, priority=1.0, trajectory=whole)


def _insert_shared(writer, row):
    """Insert the row before: its next observation is this row's, which is appended once."""
    writer.append({key: value for key, value in row.items() if key != "next_observations"})
    history = writer.history
    if len(history["actions"]) < 2:
        return
    item = {key: tf.nest.map_structure(lambda c: c[-2], column) for key, column in history.items()}
    newest = tf.nest.map_structure(lambda column: column[-1], history["observations"])
    writer.create_item(TABLE, priority=1.0, trajectory={**item, "next_observations": newest})


def actor(port, kind, pool):
    """Insert with the trajectory writer, which is the one that is recommended."""
    rows = payloads.ROWS[kind](pool)
    client = reverb.Client(f"127.0.0.1:{port}")
    writer = client.trajectory_writer(num_keep_alive_refs=2)
    insert = _insert_shared if kind == "images" else _insert_whole

    def send(n, every):
        start = time.monotonic_ns()
        for i in range(n):
            insert(writer, rows[i % pool])
            if (i + 1) % every == 0:
                writer.flush(timeout_ms=FLUSH_TIMEOUT_MS)
        writer.flush(timeout_ms=FLUSH_TIMEOUT_MS)
        return [start, time.monotonic_ns()]

    worker.serve(send=send)


def old_actor(port, kind, pool):
    """Insert with the writer of sequences, which is older and faster."""
    rows = payloads.ROWS[kind](pool)
    length = 2 if kind == "images" else 1
    if length == 2:
        rows = [{k: v for k, v in row.items() if k != "next_observations"} for row in rows]
    client = reverb.Client(f"127.0.0.1:{port}")
    writer = client.writer(max_sequence_length=length)
    appended = 0

    def send(n, every):
        nonlocal appended
        start = time.monotonic_ns()
        for i in range(n):
            writer.append(rows[i % pool])
            appended += 1
            if appended >= length:
                writer.create_item(TABLE, num_timesteps=length, priority=1.0)
            if (i + 1) % every == 0:
                writer.flush()
        writer.flush()
        return [start, time.monotonic_ns()]

    worker.serve(send=send)


def sampler(port):
    """Sample with the client, one call a batch."""
    client = reverb.Client(f"127.0.0.1:{port}")

    def sample(batch, n):
        def call():
            for _ in client.sample(TABLE, num_samples=batch, emit_timesteps=False):
                pass

        return worker.sample_us(call, n)

    worker.serve(sample=sample)


def dataset(port, batch):
    """Sample with the dataset, whose threads fetch ahead."""
    source = reverb.TrajectoryDataset.from_table_signature(
        f"127.0.0.1:{port}", TABLE, max_in_flight_samples_per_worker=2 * batch
    )
    batches = None

    def sample(n, **_):
        nonlocal batches
        if batches is None:  # there is nothing to fetch before the table was filled
            batches = source.batch(batch).prefetch(1).as_numpy_iterator()
        return worker.sample_us(lambda: next(batches), n)

    worker.serve(sample=sample)


if __name__ == "__main__":
    worker.main(
        server=server,
        plain_server=plain_server,
        actor=actor,
        old_actor=old_actor,
        sampler=sampler,
        dataset=dataset,
    )
