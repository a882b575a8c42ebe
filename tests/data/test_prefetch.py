"""Batches sampled in the background, over every store."""

import gc
import threading

import numpy as np
import pytest

from agentlace import Closed, NotEnoughData, SchemaMismatch
from agentlace.data import FrameReplayBuffer, ReplayBuffer
from agentlace.data.augment import RandomCrop
from agentlace.data.mixture import Mixture
from agentlace.data.rate_limiter import RateLimiter

from .stores import STORES
from .support import sealed

WAIT_S = 30


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    for thread in prefetching():
        thread.join(WAIT_S)
        assert not thread.is_alive()


def args_for(store, size):
    return {"batch_size": size} | ({"name": "all"} if hasattr(store, "metadata") else {})


def numbers(n=20, capacity=100):
    buffer = ReplayBuffer(capacity, seed=0)
    buffer.batch_insert([{"n": np.int64(i)} for i in range(n)])
    return buffer


@pytest.mark.parametrize("make", STORES, ids=lambda make: make.__name__)
def test_batches_are_those_of_the_store_in_order(make):
    ahead, behind = make(50, seed=1), make(50, seed=1)
    for store in (ahead, behind):
        store.batch_insert([sealed(i) for i in range(40)])
    with ahead.get_iterator(sample_args=args_for(ahead, 8)) as batches:
        for _ in range(10):
            mine, theirs = next(batches), behind.sample(**args_for(behind, 8))
            if isinstance(mine, tuple):
                mine, theirs = mine[0], theirs[0]
            assert np.array_equal(mine["n"], theirs["n"])


def test_no_more_than_the_queue_is_sampled_ahead():
    buffer, sampled, enough = numbers(), [], threading.Event()

    def note(batch):
        sampled.append(batch)
        if len(sampled) == 4:
            enough.set()
        return batch

    with buffer.get_iterator({"batch_size": 2}, queue_size=3, transform=note) as batches:
        assert enough.wait(WAIT_S)  # three are ready, one waits for room
        assert (
            not batches._queue._changed.acquire(False) or batches._queue._changed.release() is None
        )
        assert len(sampled) == 4
        assert next(batches) is sampled[0]


def test_a_failure_surfaces_after_what_is_ready():
    buffer = numbers()
    calls = []

    def fail_at_the_third(batch):
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return batch

    with buffer.get_iterator({"batch_size": 2}, transform=fail_at_the_third) as batches:
        assert next(batches) is calls[0] and next(batches) is calls[1]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken"):
                next(batches)


def test_an_empty_store_fails_at_next_or_is_waited_for():
    buffer = ReplayBuffer(10)
    with (
        buffer.get_iterator({"batch_size": 2}) as batches,
        pytest.raises(ValueError, match="empty"),
    ):
        next(batches)
    limited = buffer.get_iterator({"batch_size": 2}, limiter=RateLimiter(1), timeout_s=0.01)
    with limited as batches, pytest.raises(NotEnoughData, match="0 of 1"):
        next(batches)
    with buffer.get_iterator({"batch_size": 2}, limiter=RateLimiter(1)) as batches:
        buffer.insert({"n": np.int64(5)})
        assert next(batches)["n"].tolist() == [5, 5]


@pytest.mark.parametrize("limited", [True, False])
def test_closing_ends_the_thread_also_while_it_waits(limited):
    limiter = RateLimiter(1000) if limited else None
    batches = numbers().get_iterator({"batch_size": 2}, limiter=limiter)
    batches.close()
    batches.close()
    assert not batches._thread.is_alive()
    with pytest.raises(Closed):
        next(batches)


def test_closing_wakes_who_waits_for_a_batch():
    batches = numbers().get_iterator({"batch_size": 2}, limiter=RateLimiter(1000))
    caught, waiting = [], threading.Event()

    def wait():
        waiting.set()
        with pytest.raises(Closed) as closed:
            next(batches)
        caught.append(closed.value)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(WAIT_S)
    batches.close()
    thread.join(WAIT_S)
    assert caught


def test_dropping_the_iterator_ends_the_thread():
    batches = numbers().get_iterator({"batch_size": 2})
    next(batches)
    thread = batches._thread
    del batches
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_queue_needs_room():
    with pytest.raises(ValueError, match="queue_size"):
        numbers().get_iterator({"batch_size": 2}, queue_size=0)


# -- packing, moving, augmenting -------------------------------------------------------------------


def images(make, n=12):
    buffer = make(50)
    frames = np.random.default_rng(0).integers(0, 255, (n + 1, 1, 16, 16, 3), np.uint8)
    for i in range(n):
        parts = {
            key: {"wrist": frames[i + j], "state": np.full(2, i + j, np.float32)}
            for j, key in enumerate(("observations", "next_observations"))
        }
        buffer.insert({**parts, "actions": (np.float32(i), np.int32(i))})
    return buffer, frames


def stacked_frames(capacity):
    return FrameReplayBuffer(capacity, stacked=True)


@pytest.mark.parametrize("make", [ReplayBuffer, stacked_frames])
@pytest.mark.parametrize("mixed", [True, False])
def test_frames_of_both_observations_are_packed(make, mixed):
    buffer, frames = images(make)
    store = Mixture({"a": 0.5, "b": 0.5}, {"a": buffer, "b": buffer}) if mixed else buffer
    with store.get_iterator({"batch_size": 6}, pack_obs_and_next_obs=True) as batches:
        batch = next(batches)
    assert batch["next_observations"].keys() == {"state"}
    assert batch["observations"]["wrist"].shape == (6, 2, 16, 16, 3)
    assert isinstance(batch["actions"], tuple)
    for wrist, i in zip(batch["observations"]["wrist"], batch["actions"][1], strict=True):
        assert np.array_equal(wrist, frames[i : i + 2, 0])


def test_batches_are_moved_to_a_device_or_sharding():
    jax = pytest.importorskip("jax")
    buffer, _ = images(ReplayBuffer)
    device = jax.devices()[-1]
    for target in (device, jax.sharding.SingleDeviceSharding(device)):
        with buffer.get_iterator(sample_args={"batch_size": 4}, device=target) as batches:
            batch = next(batches)
        assert batch["observations"]["wrist"].devices() == {device}
        assert batch["observations"]["wrist"].dtype == np.uint8


def test_random_crops_shift_each_transition_apart():
    jax = pytest.importorskip("jax")
    buffer, frames = images(ReplayBuffer)
    crop = RandomCrop(["observations/wrist"], padding=2)
    device = jax.devices()[0]
    iterator = buffer.get_iterator(
        {"batch_size": 64}, device=device, pack_obs_and_next_obs=True, transform=crop
    )
    with iterator as batches:
        batch = next(batches)
    found = np.asarray(batch["observations"]["wrist"])
    padded = np.pad(frames[:, 0], ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    shifts = set()
    for both, i in zip(found, np.asarray(batch["actions"][1]), strict=True):
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(both, padded[i : i + 2, y : y + 16, x : x + 16])
        ]
        assert len(fits) == 1  # both frames are shifted alike
        shifts.add(fits[0])
    assert len(shifts) > 10
    assert np.array_equal(
        np.asarray(batch["observations"]["state"])[:, 0], np.asarray(batch["actions"][0])
    )
    with pytest.raises(SchemaMismatch, match="observations/front"):
        RandomCrop(["observations/front"])(batch)
    data, mask = crop((batch, "mask"))
    assert data["observations"]["wrist"].shape == found.shape and mask == "mask"
