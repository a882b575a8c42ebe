"""Observations: the newest one, never an older one after it; gaps are counted, never queued."""

import contextlib
import os
import signal
import threading

import numpy as np
import pytest
from transport_support import DEADLINE_S, broker_at, channel_to, kill_clients, once, wait_until

from agentlace import codec
from agentlace.errors import BrokerUnreachable, EncodeError, StoreFull
from agentlace.transport import subscription
from agentlace.transport.broadcast import (
    INLINE_BYTES,
    BroadcastPublisher,
    BroadcastWatcher,
    read_newest,
)
from agentlace.transport.keys import NEWEST_MS

SMALL, LARGE = 10, INLINE_BYTES


def observation(n, size=SMALL):
    return {"n": n, "image": np.full(size, n % 256, np.uint8)}


class Watcher:
    """A watcher that keeps the numbers of what it saw, and waits while it is held."""

    def __init__(self, broker, keys):
        self.seen = []
        self.free = threading.Event()
        self.free.set()
        self.watcher = BroadcastWatcher(broker, keys, self._see)

    def _see(self, tree):
        np.testing.assert_array_equal(tree["image"], tree["n"] % 256)
        tree["image"][:] = 0  # it is the watcher's own
        self.seen.append(tree["n"])
        assert self.free.wait(DEADLINE_S)

    def saw(self, n):
        wait_until(lambda: self.seen and self.seen[-1] == n, what=f"observation {n}")
        assert self.seen == sorted(set(self.seen))
        return True


@pytest.fixture
def publisher(broker, keys):
    with contextlib.closing(BroadcastPublisher(broker, keys, "robot")) as publisher:
        yield publisher


@pytest.fixture
def watch(broker, keys):
    with contextlib.ExitStack() as stack:

        def watch(at=None):
            watcher = Watcher(at or broker, keys)
            stack.callback(watcher.watcher.stop)
            stack.callback(watcher.free.set)
            watcher.watcher.start()
            return watcher

        yield watch


@pytest.mark.parametrize("size", [0, SMALL, LARGE - 2000, LARGE, 1 << 20])
def test_what_is_published_after_start_is_seen(publisher, watch, size):
    watchers = [watch() for _ in range(3)]
    for n in range(1, 6):
        publisher.publish(observation(n, size))
        assert all(watcher.saw(n) for watcher in watchers)
    assert all(watcher.seen == [1, 2, 3, 4, 5] for watcher in watchers)
    assert all(watcher.watcher.missed == 0 for watcher in watchers)
    assert all(watcher.watcher.delivered == 5 for watcher in watchers)
    assert publisher.published == 5


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_slow_watcher_gets_the_newest_and_counts_the_others(publisher, watch, size):
    slow = watch()
    slow.free.clear()
    publisher.publish(observation(1, size))
    assert slow.saw(1)
    for n in range(2, 101):
        publisher.publish(observation(n, size))
    slow.free.set()
    assert slow.saw(100)
    assert len(slow.seen) + slow.watcher.missed == 100
    assert len(slow.seen) < 50


def test_the_newest_can_be_read(publisher, channel, keys):
    assert read_newest(channel, keys) is None
    for n in (1, 2, 3):
        publisher.publish(observation(n, LARGE))
    assert read_newest(channel, keys).tree["n"] == 3
    assert 0 < channel.call("PTTL", keys.newest_obs) <= NEWEST_MS


def test_a_newest_that_has_expired_is_passed_over(publisher, watch, channel, keys):
    watcher = watch()
    channel.call(channel.pubsub().publish, keys.obs_channel, b"")
    publisher.publish(observation(1, LARGE))
    assert watcher.saw(1)


def test_an_observation_that_may_not_travel(publisher, watch):
    watcher = watch()
    with pytest.raises(EncodeError, match="image"):
        publisher.publish({"image": object()})
    publisher.publish(observation(1))
    assert watcher.saw(1)
    publisher.publish(observation(2))
    assert watcher.saw(2)
    assert watcher.watcher.missed == 0


def test_a_restarted_publisher_counts_anew(publisher, watch, broker, keys):
    watcher = watch()
    for n in (1, 2, 3):
        publisher.publish(observation(n))
    assert watcher.saw(3)
    with contextlib.closing(BroadcastPublisher(broker, keys, "robot restarted")) as again:
        again.publish(observation(4))
        assert watcher.saw(4)
    assert watcher.watcher.missed == 3 - len(watcher.seen[:-1])  # not as many as 4 is after 1


def test_a_callback_that_raises(publisher, broker, keys, caplog):
    seen = []

    def fail(tree):
        seen.append(tree["n"])
        raise RuntimeError("no screen")

    watcher = BroadcastWatcher(broker, keys, fail)
    watcher.start()
    for n in (1, 2):
        publisher.publish(observation(n))
        wait_until(lambda n=n: seen[-1:] == [n])
    watcher.stop()
    assert "no screen" in caplog.text


def test_garbage_is_ignored(publisher, watch, channel, keys, caplog):
    watcher = watch()
    for garbage in (
        b"garbage",
        codec.encode(1),
        codec.encode(1, "obs"),
        codec.encode(1, "obs", {}),
    ):
        channel.call(channel.pubsub().publish, keys.obs_channel, garbage)
    channel.call(
        channel.pubsub().publish,
        keys.obs_channel,
        codec.encode(1, "obs", {"source": "", "number": "x"}),
    )
    wait_until(lambda: "broadcast of trainer:5555" in caplog.text)
    publisher.publish(observation(1))
    assert watcher.saw(1)


@once
def test_through_cut_connections(broker_url, keys, watch):
    broker = broker_at(broker_url)
    watcher = watch(broker)
    published = 0
    with (
        contextlib.closing(BroadcastPublisher(broker, keys, "robot")) as publisher,
        channel_to(broker_url) as killer,
    ):
        for _ in range(5):
            kill_clients(killer)
            connects = watcher.watcher._subscription._channel.connects
            wait_until(lambda c=connects: watcher.watcher._subscription._channel.connects > c - 1)
            for _ in range(20):
                with contextlib.suppress(BrokerUnreachable):
                    published += 1
                    publisher.publish(observation(published))
        wait_until(lambda: _seen_at_last(publisher, watcher))
        last = publisher.published
        wait_until(lambda: watcher.watcher._last[1] == last)
    assert watcher.watcher.missed + watcher.watcher.delivered <= last
    assert watcher.seen == sorted(set(watcher.seen))


def _seen_at_last(publisher, watcher):
    """Publish until the watcher, which has to subscribe again, sees it."""
    seen = watcher.watcher.delivered
    with contextlib.suppress(BrokerUnreachable):
        publisher.publish(observation(1000 + publisher.published))
    with contextlib.suppress(AssertionError):
        return wait_until(lambda: watcher.watcher.delivered > seen, timeout_s=0.1)


@once
def test_a_watcher_waits_for_a_broker_that_is_away(own_broker, keys, watch, caplog):
    at = broker_at(own_broker.settings.url)
    own_broker.stop()
    watcher = watch(at)
    assert "waits for the broker" in caplog.text
    own_broker.start()
    with contextlib.closing(BroadcastPublisher(at, keys, "robot")) as publisher:
        wait_until(lambda: _seen_at_last(publisher, watcher))


@once
@pytest.mark.parametrize("what", ["frozen", "quiet"])
def test_a_broker_that_falls_silent_is_noticed(own_broker, keys, watch, monkeypatch, caplog, what):
    """A subscription sends nothing by itself: without a question it would be deaf for ever."""
    monkeypatch.setattr(subscription, "SILENCE_S", 0.1)
    monkeypatch.setattr("agentlace.transport.channel.Channel.slice_s", 0.05)
    at = broker_at(own_broker.settings.url)
    watcher = watch(at)
    if what == "frozen":
        os.kill(own_broker.pid, signal.SIGSTOP)
        wait_until(lambda: "no answer for" in caplog.text)
        os.kill(own_broker.pid, signal.SIGCONT)
    with contextlib.closing(BroadcastPublisher(at, keys, "robot")) as publisher:
        wait_until(lambda: _seen_at_last(publisher, watcher))
        asked = watcher.watcher._subscription
        wait_until(lambda: asked._has_asked)
        wait_until(lambda: not asked._has_asked)  # and answered
        wait_until(lambda: _seen_at_last(publisher, watcher))


def test_a_full_broker(own_broker, keys):
    at = broker_at(own_broker.settings.url)
    with (
        contextlib.closing(BroadcastPublisher(at, keys, "robot")) as publisher,
        channel_to(own_broker.settings.url) as channel,
    ):
        channel.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFull):
            publisher.publish(observation(1))
        channel.call("CONFIG", "SET", "maxmemory", "0")
        publisher.publish(observation(2))


def test_publishing_from_several_threads(publisher, watch):
    watcher = watch()
    threads = [
        threading.Thread(target=lambda: [publisher.publish(observation(1)) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: watcher.watcher.delivered + watcher.watcher.missed == 200)


def test_stop(publisher, watch):
    watcher = watch()
    publisher.publish(observation(1))
    assert watcher.saw(1)
    watcher.watcher.stop()
    watcher.watcher.stop()
    publisher.publish(observation(2))
    assert watcher.seen == [1]
    assert not watcher.watcher._thread.is_alive()


def test_a_watcher_may_be_stopped_by_its_callback(publisher, broker, keys):
    seen = []
    watcher = BroadcastWatcher(broker, keys, lambda tree: (seen.append(tree), watcher.stop()))
    watcher.start()
    publisher.publish(observation(1))
    wait_until(lambda: not watcher._thread.is_alive())
    assert len(seen) == 1
