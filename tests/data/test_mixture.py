"""Batches from several stores, and when they may be drawn."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from agentlace import Closed, NotEnoughData, SchemaMismatch
from agentlace.data import ReplayBuffer
from agentlace.data.mixture import Mixture
from agentlace.data.rate_limiter import RateLimiter

from .stores import trajectory_store
from .support import sealed

WAIT_S = 30


def filled(start, n, capacity=1000):
    buffer = ReplayBuffer(capacity)
    buffer.batch_insert([{"n": np.int64(start + i), "x": np.float32(i)} for i in range(n)])
    return buffer


def halves(**stores):
    return Mixture(dict.fromkeys(stores, 1 / len(stores)), stores)


# -- mixing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 256])
def test_shares_are_kept_in_each_batch(size):
    shares = {"online": 0.5, "demo": 0.3, "intervention": 0.2}
    stores = {name: filled(1000 * i, 50) for i, name in enumerate(shares)}
    batch = Mixture(shares, stores).sample(size)
    origins = np.bincount(batch["n"] // 1000, minlength=3)
    assert origins.sum() == len(batch["x"]) == size
    assert np.abs(origins - size * np.array([0.5, 0.3, 0.2])).max() < 1
    if size == 256:
        assert origins.tolist() == [128, 77, 51]


def test_it_samples_trajectories_with_their_masks():
    stores = {name: trajectory_store(100) for name in ("a", "b")}
    for store in stores.values():
        store.batch_insert([sealed(i) for i in range(20)])
    data, mask = halves(**stores).sample(10, name="all")
    assert data["observations"]["wrist"].shape == (10, 8, 8, 3) and mask["n"].shape == (10,)


def test_jax_batches_are_joined_on_the_device():
    jax = pytest.importorskip("jax")
    stores = {name: trajectory_store(100, use_jax=True) for name in ("a", "b")}
    for store in stores.values():
        store.batch_insert([sealed(i) for i in range(20)])
    data, _ = halves(**stores).sample(10, name="all")
    assert isinstance(data["n"], jax.Array) and data["n"].shape == (10,)


def test_an_empty_store_is_named_unless_it_has_no_share():
    stores = {"online": filled(0, 5), "demo": ReplayBuffer(5)}
    with pytest.raises(ValueError, match=r"store 'demo': .* empty"):
        Mixture({"online": 0.5, "demo": 0.5}, stores).sample(4)
    assert len(Mixture({"online": 1, "demo": 0}, stores).sample(4)["n"]) == 4


def test_a_store_that_holds_too_little_leaves_its_share_to_the_others():
    shares = {"online": 0.5, "demo": 0.25, "intervention": 0.25}
    stores = {"online": filled(0, 5), "demo": filled(1000, 5), "intervention": filled(0, 0)}
    mixture = Mixture(shares, stores, min_sizes={"intervention": 3})
    for held, counts in enumerate(([8, 4, 0], [8, 4, 0], [8, 4, 0], [6, 3, 3])):
        assert len(stores["intervention"]) == held
        assert list(mixture.counts(12).values()) == counts
        assert np.bincount(mixture.sample(12)["n"] // 1000, minlength=3).tolist() == counts
        stores["intervention"].insert({"n": np.int64(2000), "x": np.float32(0)})
    with pytest.raises(ValueError, match=r"store 'demo': .* empty"):
        Mixture(shares, {**stores, "demo": filled(0, 0)}, {"intervention": 3}).sample(12)


def test_a_mixture_is_a_store_of_another():
    """Then a share goes to some of the others only."""
    demo, intervention = filled(1000, 5), filled(0, 0)
    expert = Mixture(
        {"demo": 0.5, "intervention": 0.5},
        {"demo": demo, "intervention": intervention},
        min_sizes={"intervention": 1},
    )
    mixture = halves(online=filled(0, 5), expert=expert)
    for counts in ([6, 6, 0], [6, 3, 3]):
        assert np.bincount(mixture.sample(12)["n"] // 1000, minlength=3).tolist() == counts
        intervention.insert({"n": np.int64(2000), "x": np.float32(0)})
    assert (len(mixture), mixture.inserted) == (12, 12)


def test_no_store_holds_enough():
    mixture = Mixture({"a": 1, "b": 0}, {"a": filled(0, 2), "b": filled(0, 9)}, {"a": 1_000})
    with pytest.raises(ValueError, match="enough transitions: a 2 of 1,000"):
        mixture.sample(4)
    with pytest.raises(ValueError, match="min_sizes"):
        Mixture({"a": 1}, {"a": filled(0, 2)}, {"b": 1})


def test_transitions_that_differ_are_named():
    other = ReplayBuffer(5)
    other.insert({"n": np.int64(1)})
    with pytest.raises(SchemaMismatch, match=r"x: .*'a'.*None in 'b'"):
        halves(a=filled(0, 5), b=other).sample(4)


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}])
def test_shares_that_cannot_be(shares):
    with pytest.raises(ValueError, match="shares"):
        Mixture(shares, {"a": filled(0, 1), "b": filled(0, 1)})


# -- pacing ----------------------------------------------------------------------------------------


def test_it_says_what_it_waits_for():
    buffer, limiter = filled(0, 12), RateLimiter(min_size=300)
    assert limiter.waits_for(buffer, 256) == "12 of 300 transitions inserted"
    with pytest.raises(NotEnoughData, match="12 of 300 transitions") as caught:
        limiter.wait(buffer, 256, timeout_s=0.01)
    assert isinstance(caught.value, TimeoutError) and caught.value.missing.startswith("12")


def test_samples_follow_inserts():
    buffer, limiter = filled(0, 10), RateLimiter(samples_per_insert=4)
    for _ in range(5):
        limiter.wait(buffer, 8, timeout_s=0)
    assert limiter.sampled == 40
    assert "need 2 more (samples_per_insert=4)" in limiter.waits_for(buffer, 8)
    with pytest.raises(NotEnoughData, match="40 sampled"):
        limiter.wait(buffer, 8, timeout_s=0.01)
    buffer.batch_insert([{"n": 1, "x": np.float32(1)}] * 2)
    limiter.wait(buffer, 8, timeout_s=0)


def test_what_was_loaded_in_advance_does_not_count():
    online, demo = ReplayBuffer(100), ReplayBuffer(100)
    with demo.preloading():
        demo.batch_insert([{"n": i, "x": np.float32(i)} for i in range(50)])
    mixture, limiter = halves(online=online, demo=demo), RateLimiter(min_size=3)
    assert (mixture.inserted, mixture.preloaded, len(mixture)) == (50, 50, 50)
    assert limiter.waits_for(mixture, 4) == "0 of 3 transitions inserted"
    online.batch_insert([{"n": 0, "x": np.float32(0)}] * 3)
    assert limiter.waits_for(mixture, 4) is None


@pytest.mark.parametrize("mixed", [True, False])
def test_an_insert_ends_the_waiting(mixed):
    store = filled(0, 0)
    waited_for = halves(other=filled(0, 0), store=store) if mixed else store
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(RateLimiter(min_size=2).wait, waited_for, 1, WAIT_S)
        store.insert({"n": 1, "x": 1.0})
        assert not waiting.done()
        store.insert({"n": 1, "x": 1.0})
        waiting.result(WAIT_S)


def test_it_stops_when_told_to():
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(RateLimiter(2).wait, filled(0, 1), 1, None, stop.is_set)
        stop.set()
        with pytest.raises(Closed):
            waiting.result(WAIT_S)


def test_a_long_wait_is_logged(monkeypatch, caplog):
    monkeypatch.setattr("agentlace.data.rate_limiter.REPORT_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO)
    with pytest.raises(NotEnoughData):
        RateLimiter(5).wait(filled(0, 2), 1, timeout_s=0.01)
    assert "waits for transitions: 2 of 5 transitions inserted" in caplog.text


@pytest.mark.parametrize("args", [(-1,), (1, 0), (1, -2.0)])
def test_limits_that_cannot_be(args):
    with pytest.raises(ValueError, match="samples_per_insert"):
        RateLimiter(*args)
