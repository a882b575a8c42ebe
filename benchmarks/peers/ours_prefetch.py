"""Batches of images on their way to a device: our prefetch, and the device's own copies."""

import time

import numpy as np

from agentlace.data.prefetch import Prefetch
from benchmarks import worker
from benchmarks.peers.ours_sampling import filled

QUEUE_SIZE = 4


def _device(platform):
    import jax

    return jax.devices(platform)[0]


def _rates(make, nbytes, n):
    """Return GB/s of each of n batches, from one being there to the next."""
    import jax

    jax.block_until_ready(make())
    rates, before = [], time.perf_counter()
    for _ in range(n):
        jax.block_until_ready(make())
        now = time.perf_counter()
        rates.append(nbytes / (now - before) / 1e9)
        before = now
    return rates


def prefetch(rows, batch, platform):
    """Answer how fast batches arrive whose images a store samples, and how fast copies are."""
    import jax

    store, device = filled("images", rows), _device(platform)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(store.sample(batch)))

    def arrive(n):
        with Prefetch(store, {"batch_size": batch}, QUEUE_SIZE, device) as batches:
            return _rates(lambda: next(batches), nbytes, n)

    def copy(n, pinned):
        """Copy one array of a batch's size again and again."""
        source = np.ones(nbytes, np.uint8)
        if pinned:
            kind = "pinned_host"
            source = jax.device_put(
                source, jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
            )
        target = jax.sharding.SingleDeviceSharding(device, memory_kind="device")
        return _rates(lambda: jax.device_put(source, target), nbytes, n)

    def sample(n):
        return _rates(lambda: store.sample(batch), nbytes, n)

    worker.serve(arrive=arrive, copy=copy, sample=sample)


if __name__ == "__main__":
    worker.main(prefetch=prefetch)
