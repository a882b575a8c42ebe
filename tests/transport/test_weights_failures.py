"""Networks: whatever is cut, killed, emptied or full, the newest one arrives at last."""

import contextlib
import logging
import os
import re
import signal
import threading

import numpy as np
import pytest
from transport_support import broker_at, channel_to, kill_clients, wait_until
from weights_support import LARGE, LONG_S, SMALL, SlowLink, leaf_keys, network, publish

from agentlace.errors import BrokerUnreachable
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.weights import BATCH_BYTES
from tests.ports import free_port


@pytest.fixture
def broker(own_broker):
    return broker_at(own_broker.settings.url)


@pytest.fixture
def link(own_broker):
    """A slow link to the broker, which is open at first."""
    with SlowLink(own_broker.settings.port) as link:
        link.open()
        yield link


def test_through_cut_connections(broker, trainer, player):
    one, publisher = player(), trainer()
    stop = threading.Event()

    def kill():
        with contextlib.closing(broker.channel()) as channel:
            while not stop.wait(0.03):
                kill_clients(channel)

    killer = threading.Thread(target=kill)
    killer.start()
    for n in range(1, 60):
        publisher.publish(network(n, LARGE))
        publisher.flush(0.02)
    stop.set()
    killer.join()
    assert publisher.flush(LONG_S)
    assert one.has(59)
    assert one.receiver._channel.connects + one.receiver._subscription._connects > 2


def test_a_killed_and_restarted_broker(own_broker, trainer, player):
    """Its log may lack the newest network; then that is sent again."""
    one, publisher = player(), trainer()
    with channel_to(own_broker.settings.url) as beat:
        for n in range(1, 4):
            publish(publisher, n, LARGE)
            os.kill(own_broker.pid, signal.SIGKILL)
            own_broker.wait()
            own_broker.start()
            wait_until(lambda: restored(publisher, beat))
            assert publisher.flush(LONG_S)
            assert one.has(n)
            assert player().has(n)


def restored(publisher, beat):
    with contextlib.suppress(BrokerUnreachable):
        publisher.restore(beat)
        return True


def test_a_broker_that_has_forgotten_the_newest(own_broker, trainer, player, keys):
    publisher = trainer()
    publish(publisher, 1)
    with channel_to(own_broker.settings.url) as beat:
        before = beat.call("GET", keys.weights)
        publish(publisher, 2)
        beat.call("SET", keys.weights, before)
        publisher.restore(beat)
        assert publisher.flush(LONG_S)
    assert player().has(2)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_broker_that_comes_back_empty(trainer, player, size):
    with EmbeddedBroker(Settings(port=free_port())) as embedded:
        at = broker_at(embedded.settings.url)
        one, publisher = player(at), trainer(at)
        publish(publisher, 1, size)
        assert one.has(1)
        embedded.stop()
        publisher.publish(network(2, size))
        assert not publisher.flush(0.05)
        embedded.start()
        assert publisher.flush(LONG_S)
        assert one.has(2)
        embedded.stop()
        embedded.start()
        with channel_to(embedded.settings.url) as beat:
            publisher.restore(beat)
        late = player(at)
        assert late.has(2)
        publish(publisher, 3, size)
        assert one.has(3)
        assert late.has(3)
        for node in (one.receiver, late.receiver, publisher):
            node.stop()


def test_stop_while_the_broker_is_away(own_broker, trainer, player, caplog):
    caplog.set_level(logging.WARNING)
    one, publisher = player(), trainer()
    publish(publisher, 1)
    assert one.has(1)
    own_broker.stop()
    publisher.publish(network(2))
    wait_until(lambda: "network 2 waits for the broker" in caplog.text)
    publisher.stop()
    one.receiver.stop()
    assert not publisher._thread.is_alive()
    assert not one.receiver._thread.is_alive()


def test_a_full_broker(own_broker, trainer, player, caplog):
    one, publisher = player(), trainer()
    publish(publisher, 1)
    assert one.has(1)
    with channel_to(own_broker.settings.url) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "1")
        publisher.publish(network(2, LARGE))
        wait_until(lambda: "has no room" in caplog.text)
        channel.call("CONFIG", "SET", "maxmemory", "0")
    assert publisher.flush(LONG_S)
    assert one.has(2)


@pytest.fixture
def out_of_memory(monkeypatch):
    """Return a function: memory is refused so often to one of numpy's functions in a thread."""

    def refuse(function, thread, times):
        refused = []
        real = getattr(np, function)

        def scarce(*args, **kwargs):
            if threading.current_thread().name == thread and len(refused) < times:
                refused.append(args)
                raise MemoryError("refused by the test")
            return real(*args, **kwargs)

        monkeypatch.setattr(np, function, scarce)
        return refused

    return refuse


def test_a_trainer_short_of_memory(trainer, player, caplog, out_of_memory):
    one, publisher = player(), trainer()
    publish(publisher, 1, LARGE)
    refused = out_of_memory("array_equal", "publish", 3)
    publisher.publish(network(2, LARGE))
    wait_until(lambda: refused)
    assert publisher.flush(LONG_S)
    assert one.has(2)
    assert caplog.text.count("MemoryError: refused by the test") == 1
    assert caplog.text.count("Traceback") == 1


def test_an_actor_short_of_memory(trainer, player, caplog, out_of_memory):
    one, publisher = player(), trainer()
    publish(publisher, 1, LARGE)
    assert one.has(1)
    refused = out_of_memory("empty", "receive weights", 3)
    publish(publisher, 2, LARGE)
    assert one.has(2)
    assert len(refused) == 3
    assert caplog.text.count("MemoryError: refused by the test") == 1
    assert caplog.text.count("Traceback") == 1


def test_publishing_does_not_wait_for_the_broker(own_broker, trainer, player, link):
    """The first network of a trainer whose broker does not answer: it knows no clock yet."""
    link.hold()
    publisher = trainer(link.broker)
    assert [publisher.publish(network(n, LARGE)) for n in (1, 2)] == [1, 2]
    direct = broker_at(own_broker.settings.url)
    published_ms = direct.now_ms()
    link.open()
    one = player()
    assert one.has(2)
    error_ms = direct.clock_error_ms + publisher._broker.clock_error_ms
    assert one.receiver.published_ms <= published_ms + error_ms


def small_leaves(n):
    return network(n) | {"small": [np.full(256, n, np.float32) for _ in range(200)]}


def test_sending_leaves_does_not_wait_for_each(own_broker, trainer, link, keys):
    publisher = trainer(link.broker)
    publish(publisher, 1)
    with channel_to(own_broker.settings.url) as channel:
        link.hold()
        publisher.publish(small_leaves(2))
        wait_until(lambda: len(leaf_keys(channel, keys)) == 202)
        link.open()
        assert publisher.flush(LONG_S)


def test_fetching_leaves_does_not_wait_for_each(own_broker, trainer, player, link):
    one, publisher = player(link.broker), trainer()
    publish(publisher, 1)
    assert one.has(1)
    with channel_to(own_broker.settings.url) as channel:
        before = gets(channel)
        link.hold()
        link.let(20 << 10)  # for the notification and a few leaves
        publisher.publish(small_leaves(2))
        wait_until(lambda: gets(channel) >= before + 200)
        link.open()
        assert one.has(2)


def gets(channel):
    """Return how many values the broker was asked for."""
    found = re.search(rb"cmdstat_get:calls=(\d+)", channel.call("INFO", "commandstats"))
    return int(found[1])


def test_what_was_fetched_is_not_fetched_again(own_broker, trainer, player, link, keys):
    """A fetch is cut off, and then superseded by a network of which only one leaf differs."""
    encoder = np.random.default_rng(0).integers(0, 255, 20 * BATCH_BYTES, np.uint8)
    publisher = trainer()

    def publish(n):
        publisher.publish(network(n, LARGE) | {"encoder": encoder})
        assert publisher.flush(LONG_S)

    publish(1)
    link.hold()
    link.let(encoder.nbytes // 2)
    one = player(link.broker)
    wait_until(lambda: link.is_used_up)
    publish(2)
    publish(3)
    link.cut()
    link.let(encoder.nbytes * 3 // 4)  # not enough for all of it
    assert one.has(3)
    assert one.got == [3]
