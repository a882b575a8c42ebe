"""Networks over slow links: what an actor is fetching stays until it has it, and no longer."""

import contextlib
import logging

import numpy as np
import pytest
from transport_support import broker_at, channel_to, wait_until
from weights_support import LARGE, LONG_S, SlowLink, leaf_keys, publish

from agentlace.transport import weights_pins
from agentlace.transport.keys import READERS_MS
from agentlace.transport.weights import BATCH_BYTES, newest_manifest
from agentlace.transport.weights_fetch import Fetcher, Superseded
from agentlace.transport.weights_pins import PIN_MS, Pin

SIZE = BATCH_BYTES // 4
"""Each of a network's four large leaves is a batch of its own; everything in it changes."""


@pytest.fixture
def broker(own_broker):
    return broker_at(own_broker.settings.url)


@pytest.fixture
def link(own_broker):
    """A slow link to the broker, which lets nothing through at first."""
    with SlowLink(own_broker.settings.port) as link:
        yield link


def network(n):
    return {
        "actor": {"w": np.full(SIZE, n, np.float32)},
        "critic": (np.full((3, 1), n), n),
        "more": [np.full(SIZE, n, np.float32) for _ in range(3)],
    }


def publish_large(publisher, n):
    publisher.publish(network(n))
    assert publisher.flush(LONG_S)


def versions(channel, keys):
    """Return the numbers of the versions whose leaves are in the broker."""
    return {int(key.split(":")[-3].split("-")[1]) for key in leaf_keys(channel, keys)}


def readers(channel, keys):
    return channel.call("HLEN", keys.weights_readers)


@pytest.fixture
def fetcher(broker, keys):
    with contextlib.closing(broker.channel()) as own:
        yield Fetcher(own, keys)


def test_networks_arrive_however_fast_they_are_published(trainer, player, link, channel, keys):
    """A fetch takes as long as publishing many networks; leaves stay for one of them only."""
    one, publisher = player(link.broker), trainer()
    n, kept = 0, set()
    while len(one.got) < 3:
        n += 1
        assert n < 300, "published 300, received fewer than 3"
        publish_large(publisher, n)
        kept.add(len(versions(channel, keys)))
        link.let(SIZE)
        wait_until(lambda: link.is_used_up)
    assert n > 20
    assert max(kept) == 3
    link.open()
    assert one.has(n)
    publish_large(publisher, n + 1)
    publish_large(publisher, n + 2)
    assert one.has(n + 2)
    wait_until(lambda: not readers(channel, keys))
    assert versions(channel, keys) == {n + 1, n + 2}


def test_what_is_being_fetched_is_delivered(trainer, player, link, channel, keys):
    publisher = trainer()
    publish_large(publisher, 1)
    link.let(6 * SIZE)
    one = player(link.broker)
    wait_until(lambda: link.is_used_up)
    for n in range(2, 8):
        publish_large(publisher, n)
    assert versions(channel, keys) == {1, 6, 7}
    link.open()
    assert one.has(7)
    assert one.got == [1, 7]


def test_an_actor_that_died_while_it_fetched(trainer, player, link, channel, keys):
    """Its version stays for a bounded time, and goes with the next network after that."""
    publisher = trainer()
    publish_large(publisher, 1)
    link.let(6 * SIZE)
    one = player(link.broker)
    wait_until(lambda: link.is_used_up)
    one.receiver.stop()
    publish_large(publisher, 2)
    publish_large(publisher, 3)
    assert versions(channel, keys) == {1, 2, 3}
    reader, value = channel.call("HGETALL", keys.weights_readers)
    version, until_ms = bytes(value).decode().split()
    assert 0 < int(until_ms) - channel.broker.now_ms() <= PIN_MS
    assert 0 < channel.call("PTTL", keys.weights_readers) <= READERS_MS
    over_ms = int(channel.broker.now_ms()) - 1
    channel.call("HSET", keys.weights_readers, bytes(reader), f"{version} {over_ms}")
    publish_large(publisher, 4)
    assert versions(channel, keys) == {3, 4}


@pytest.mark.parametrize("value", [b"", b"1-1", b"\xff x", b"1-1 nan", b"1-1 1", b"1-1 %d" % 1e15])
def test_pins_that_cannot_be_or_are_long_over_are_removed(trainer, channel, keys, value):
    publisher = trainer()
    channel.call("HSET", keys.weights_readers, "somebody", value)
    publish(publisher, 1, LARGE)
    assert not readers(channel, keys)


def test_an_actor_that_always_comes_too_late(trainer, fetcher, channel, keys):
    """What it hears of is gone when it asks: then it pins the newest before it knows which."""
    publisher = trainer()
    publish(publisher, 1, LARGE)
    heard = fetcher.newest()
    for n in (2, 3):
        publish(publisher, n, LARGE)
    with pytest.raises(Superseded):
        fetcher.fetch(heard)
    assert not readers(channel, keys)
    pinned = fetcher.newest()
    assert pinned.version.number == 3
    for n in range(4, 10):
        publish(publisher, n, LARGE)
        assert len(versions(channel, keys)) <= 4
    fetcher.fetch(pinned)
    wait_until(lambda: not readers(channel, keys))
    publish(publisher, 10, LARGE)
    assert versions(channel, keys) == {9, 10}


def test_each_reservation_is_of_what_is_the_newest_then(trainer, channel, keys):
    publisher, pin = trainer(), Pin(channel, keys)
    for n in range(1, 10):
        publish(publisher, n, LARGE)
        if n in (3, 7):
            channel.exchange(pin.hold(weights_pins.NEWEST))
        if n == 6:
            assert 3 in versions(channel, keys)
    assert 7 in versions(channel, keys)
    assert 3 not in versions(channel, keys)


def test_a_pin_is_renewed_now_and_then(channel, keys, monkeypatch):
    pin = Pin(channel, keys)
    assert pin.hold("1-1")
    assert not pin.hold("1-1")
    assert pin.hold("1-2")
    channel.disconnect()
    assert pin.hold("1-2"), "the broker may have lost it"
    monkeypatch.setattr(weights_pins, "RENEW_S", 0.0)
    assert pin.hold("1-2")


def test_a_link_so_slow_that_a_pin_was_over(trainer, broker, keys, channel, monkeypatch):
    """It pins for longer from then on."""
    monkeypatch.setattr(weights_pins, "PIN_MS", 1)
    pin = Pin(channel, keys)
    channel.exchange(pin.hold("1-1"))
    first = until_ms(channel, keys)
    wait_until(lambda: broker.now_ms() > first + 1)
    for _ in range(30):
        pin.note_loss()
        pin._written_s -= READERS_MS
    channel.exchange(pin.hold("1-2"))
    left_ms = until_ms(channel, keys) - broker.now_ms()
    assert READERS_MS / 4 < left_ms <= weights_pins.MAX_PIN_MS + 1000


def until_ms(channel, keys):
    (value,) = channel.call("HVALS", keys.weights_readers)
    return int(bytes(value).split()[1])


def test_a_full_broker_lets_networks_be_fetched(own_broker, trainer, player, caplog):
    publisher = trainer()
    publish_large(publisher, 1)
    with channel_to(own_broker.settings.url) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "1")
        assert player().has(1)
        channel.call("CONFIG", "SET", "maxmemory", "0")
    assert "are fetched without telling the trainer" in caplog.text


@pytest.mark.parametrize("refused", ["-@write", "-hset", "-multi", "-hset -multi"])
def test_a_user_that_may_not_write_fetches_networks(own_broker, trainer, keys, caplog, refused):
    caplog.set_level(logging.WARNING)
    publisher = trainer()
    port = own_broker.settings.port
    with channel_to(own_broker.settings.url) as channel:
        rules = ["on", ">secret", "~*", "&*", "+@all", *refused.split()]
        channel.call("ACL", "SETUSER", "reader", *rules)
    with channel_to(f"redis://reader:secret@127.0.0.1:{port}") as own:
        publish_large(publisher, 1)
        fetcher = Fetcher(own, keys)
        heard = fetcher.newest()
        fetcher.fetch(heard)
        for n in (2, 3, 4):
            publish_large(publisher, n)
        with pytest.raises(Superseded):
            fetcher.fetch(heard)
        assert fetcher.newest().version.number == 4
        assert len(fetcher.fetch(fetcher.newest())) > 4 * SIZE
    assert caplog.text.count("are fetched without telling the trainer") == 1


def test_a_successor_keeps_what_is_being_fetched(trainer, player, link, channel, keys):
    """Of the versions of a trainer that was killed, it knows the newest."""
    killed = trainer()
    publish_large(killed, 1)
    link.let(6 * SIZE)
    one = player(link.broker)
    wait_until(lambda: link.is_used_up)
    successor = trainer()
    for n in (2, 3, 4):
        publish_large(successor, n)
    assert newest_manifest(channel, keys).version.number == 3
    link.open()
    assert one.has(4)
    assert one.got == [1, 4]
