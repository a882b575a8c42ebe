"""Networks: whatever is cut, killed, emptied or full, the newest one arrives at last."""

import contextlib
import logging
import os
import signal
import threading

import numpy as np
import pytest
from transport_support import Proxy, broker_at, channel_to, free_port, kill_clients, wait_until
from weights_support import LARGE, LONG_S, SMALL, leaf_keys, network, publish

from agentlace.errors import BrokerUnreachable
from agentlace.transport.embedded import EmbeddedBroker, Settings


@pytest.fixture
def broker(own_broker):
    return broker_at(own_broker.settings.url)


@pytest.fixture
def proxy_to_own(own_broker):
    with Proxy(own_broker.settings.port) as proxy:
        yield proxy


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


def test_publishing_does_not_wait_for_the_broker(own_broker, trainer, player, proxy_to_own):
    """The first network of a trainer whose broker does not answer: it knows no clock yet."""
    proxy_to_own.flows.clear()
    publisher = trainer(broker_at(f"redis://127.0.0.1:{proxy_to_own.port}", over_tcp=True))
    assert [publisher.publish(network(n, LARGE)) for n in (1, 2)] == [1, 2]
    direct = broker_at(own_broker.settings.url)
    published_ms = direct.now_ms()
    proxy_to_own.flows.set()
    one = player()
    assert one.has(2)
    error_ms = direct.clock_error_ms + publisher._broker.clock_error_ms
    assert one.receiver.published_ms <= published_ms + error_ms


def small_leaves(n):
    return network(n) | {"small": [np.full(256, n, np.float32) for _ in range(200)]}


def test_leaves_do_not_wait_for_each_other(own_broker, trainer, proxy_to_own, keys):
    """Many are sent although the broker's answer to the first is held up."""
    publisher = trainer(broker_at(f"redis://127.0.0.1:{proxy_to_own.port}", over_tcp=True))
    publish(publisher, 1)
    with channel_to(own_broker.settings.url) as channel:
        proxy_to_own.flows.clear()
        publisher.publish(small_leaves(2))
        wait_until(lambda: len(leaf_keys(channel, keys)) == 202)
        proxy_to_own.flows.set()
        assert publisher.flush(LONG_S)
