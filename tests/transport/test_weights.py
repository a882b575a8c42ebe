"""Networks: the newest one reaches every actor, once, whole, and never an older one after it."""

import threading

import numpy as np
import pytest
from transport_support import wait_until
from weights_support import LARGE, LONG_S, SMALL, leaf_keys, network, publish

from agentlace import codec
from agentlace.errors import AlreadyServed, BrokerUnreachable, Closed, DecodeError, EncodeError
from agentlace.transport import weights_publisher
from agentlace.transport.keys import LEAF_MS
from agentlace.transport.weights import (
    BATCH_BYTES,
    BATCH_KEYS,
    Manifest,
    Version,
    batches,
    newest_manifest,
    snapshot,
)
from agentlace.transport.weights_receiver import WeightsReceiver

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, SMALL, LARGE // 4, LARGE, MIB])
def test_a_network_arrives(trainer, player, size):
    first, publisher = player(), trainer()
    publish(publisher, 1, size)
    assert first.has(1)
    publish(publisher, 2, size)
    assert first.has(2)
    assert first.got == [1, 2]
    assert first.receiver.received == 2
    assert first.receiver.version.number == publisher.published == 2


def test_every_actor_gets_it(trainer, player):
    players, publisher = [player() for _ in range(4)], trainer()
    for n in range(1, 6):
        publish(publisher, n, LARGE)
    assert all(one.has(5) for one in players)


def test_a_late_actor_gets_the_newest_at_once(trainer, player):
    publisher = trainer()
    for n in (1, 2, 3):
        publish(publisher, n, LARGE)
    late = player()
    assert late.has(3)
    assert late.got == [3]


def test_its_age_is_known(trainer, player, broker):
    one = player()
    assert one.receiver.age_s is None
    before = broker.now_ms()
    publish(trainer(), 1)
    assert one.has(1)
    assert before <= one.receiver.published_ms <= broker.now_ms()
    assert 0 <= one.receiver.age_s < LONG_S


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_many_versions_come_in_order_and_none_twice(trainer, player, size):
    one, publisher = player(), trainer()
    for n in range(1, 201):
        publisher.publish(network(n, size))
    assert publisher.flush(LONG_S)
    assert one.has(200)
    assert one.receiver.received == len(one.got)


def test_what_was_not_sent_is_superseded(trainer, player, monkeypatch):
    one, publisher = player(), trainer()
    sending, go_on = threading.Event(), threading.Event()
    send = publisher._send

    def slow_send(network):
        sending.set()
        assert go_on.wait(LONG_S)
        send(network)

    monkeypatch.setattr(publisher, "_send", slow_send)
    publisher.publish(network(1))
    assert sending.wait(LONG_S)
    assert [publisher.publish(network(n)) for n in (2, 3, 4)] == [2, 3, 4]
    assert not publisher.flush(0.0)
    go_on.set()
    assert publisher.flush(LONG_S)
    assert one.has(4)
    assert one.got in ([1, 4], [4])
    assert publisher.superseded == 2


def test_a_snapshot_is_taken(trainer, player, monkeypatch):
    """The learner goes on with its arrays right after it has published them."""
    one, publisher = player(), trainer()
    for n in range(1, 30):
        tree = network(n, LARGE)
        publisher.publish(tree)
        tree["actor"]["w"][:] = -n
    assert publisher.flush(LONG_S)
    assert one.has(29)


def test_snapshot_is_a_copy_of_its_own():
    tree = network(1)
    copy = snapshot(tree)
    tree["actor"]["w"][:] = 2
    np.testing.assert_array_equal(copy["actor"]["w"], 1)
    assert type(copy["critic"]) is tuple
    assert copy["actor"]["w"].flags.writeable


def test_a_network_that_may_not_travel(trainer, player):
    one, publisher = player(), trainer()
    with pytest.raises(EncodeError, match="critic"):
        publisher.publish({"critic": object()})
    publish(publisher, 1)
    assert one.has(1)


def test_a_hundred_megabytes(trainer, player, channel, keys):
    one, publisher = player(), trainer()
    rng = np.random.default_rng(0)
    big = rng.integers(0, 255, 100 * MIB, np.uint8)
    publisher.publish({"actor": {"w": np.full(1, 7)}, "critic": (big, 7)})
    assert publisher.flush(60)
    parts = leaf_keys(channel, keys)
    assert len(parts) == 1 + -(-big.nbytes // weights_publisher.PART_BYTES)
    assert one.has(7)
    assert one.receiver.received == 1


def test_leaves_are_split(trainer, player, channel, keys, monkeypatch):
    monkeypatch.setattr(weights_publisher, "PART_BYTES", 10_000)
    one, publisher = player(), trainer()
    publish(publisher, 1, LARGE)
    assert one.has(1)
    assert len(leaf_keys(channel, keys)) == 1 + -(-4 * LARGE // 10_000)


@pytest.mark.parametrize(
    "sizes, groups",
    [
        ([], []),
        ([1], [1]),
        ([0] * (BATCH_KEYS + 1), [BATCH_KEYS, 1]),
        ([BATCH_BYTES, 1], [1, 1]),
        ([1, BATCH_BYTES - 1, 1], [2, 1]),
        ([5 * BATCH_BYTES, 5 * BATCH_BYTES], [1, 1]),
    ],
)
def test_batches_are_bounded(sizes, groups):
    found = list(batches(enumerate(sizes)))
    assert [n for batch in found for n in batch] == list(range(len(sizes)))
    assert [len(batch) for batch in found] == groups


def test_many_small_leaves(trainer, player, channel, keys):
    """More than travel in one write, of which every other one changes."""
    one, publisher = player(), trainer()
    for n in (1, 2, 3):
        small = [np.full(256, n if i % 2 else 0, np.float32) for i in range(1000)]
        publisher.publish(network(n) | {"small": small})
        assert publisher.flush(LONG_S)
        assert one.has(n)
        changed = [k for k in newest_manifest(channel, keys).keys if f"-{n}:" in k]
        assert len(changed) == (1002 if n == 1 else 502)


def test_a_callback_that_raises(trainer, player, caplog):
    one, publisher = player(), trainer()
    one.fails = True
    publish(publisher, 1)
    wait_until(lambda: "the callback for network" in caplog.text)
    assert "cannot use it" in caplog.text
    one.fails = False
    publish(publisher, 2)
    assert one.has(2)
    assert one.got == [1, 2]


FROZEN = np.random.default_rng(0).integers(0, 255, MIB, np.uint8)


def frozen(n):
    """Return a network with a large part that never changes."""
    return network(n, 100) | {"encoder": FROZEN}


def test_leaves_that_did_not_change_are_sent_once(trainer, player, channel, keys):
    one, publisher = player(), trainer()
    for n in range(1, 11):
        publisher.publish(frozen(n))
        assert publisher.flush(LONG_S)
        assert one.has(n)
    *others, encoder = newest_manifest(channel, keys).leaves
    assert {key.split(":")[-3].split("-")[1] for key in encoder} == {"1"}
    assert {key.split(":")[-3].split("-")[1] for leaf in others for key in leaf} == {"10"}
    assert one.got == list(range(1, 11))
    assert set(one.receiver._fetcher._frozen) <= leaf_keys(channel, keys)
    late = player()
    assert late.has(10)


def test_a_leaf_of_another_shape_is_sent(trainer, player):
    one, publisher = player(), trainer()
    for n, shape in enumerate([(1000, 100), (100, 1000), (100_000,)], start=1):
        tree = {"actor": {"w": np.full(shape, n, np.float32)}, "critic": (np.zeros(1), n)}
        publisher.publish(tree)
        assert publisher.flush(LONG_S)
        assert one.has(n)


def test_keys_of_old_versions_go(trainer, player, channel, keys):
    one, publisher = player(), trainer()
    for n in range(1, 51):
        publish(publisher, n, LARGE)
    assert one.has(50)
    kept = leaf_keys(channel, keys)
    assert {key.split(":")[-3].split("-")[1] for key in kept} == {"49", "50"}
    assert len(kept) == 2 * 2
    newest = newest_manifest(channel, keys).keys
    assert all(channel.call("PTTL", key) == -1 for key in newest)
    assert all(0 < channel.call("PTTL", key) <= LEAF_MS for key in kept - newest)
    publish(publisher, 51, SMALL)
    publish(publisher, 52, SMALL)
    publish(publisher, 53, SMALL)
    assert not leaf_keys(channel, keys)
    assert one.has(53)


def test_a_killed_trainers_keys_go(trainer, channel, keys):
    """It kept two versions, and its successor knows of one."""
    killed = trainer()
    publish(killed, 1, LARGE)
    publish(killed, 2, LARGE)
    successor = trainer()
    for n in (3, 4, 5):
        publish(successor, n, LARGE)
    newest = newest_manifest(channel, keys)
    left = leaf_keys(channel, keys) - newest.keys
    assert all(0 < channel.call("PTTL", key) <= LEAF_MS for key in left)


def test_leaves_that_were_never_announced_expire(trainer, channel, keys, monkeypatch):
    publisher = trainer()

    def die(manifest):
        raise BrokerUnreachable("url", "killed before the announcement")

    monkeypatch.setattr(publisher, "_announce", die)
    publisher.publish(network(1, LARGE))
    left = wait_until(lambda: leaf_keys(channel, keys))
    assert all(0 < channel.call("PTTL", key) <= LEAF_MS for key in left)


def test_a_restarted_trainer_is_newer(trainer, player):
    one = player()
    first = trainer()
    for n in (1, 2, 3):
        publish(first, n, LARGE)
    assert one.has(3)
    first.stop()
    second = trainer()
    publish(second, 4, LARGE)
    assert one.has(4)
    assert one.versions[-1].number == 1
    assert one.versions[-1].incarnation > one.versions[-2].incarnation


def test_an_older_trainer_is_refused(trainer, player, caplog):
    one, old, new = player(), trainer(), trainer()
    publish(old, 1)
    publish(new, 2)
    old.publish(network(3))
    wait_until(lambda: "network 2 was not published" in caplog.text)
    assert not old.flush(LONG_S)
    with pytest.raises(AlreadyServed, match="a newer trainer has published"):
        old.publish(network(4))
    publish(new, 5)
    assert one.has(5)
    assert set(one.got) <= {1, 2, 5}


def test_what_cannot_be_read_is_replaced(trainer, player, channel, keys, caplog):
    one = player()
    channel.call("SET", keys.weights, b"garbage")
    channel.call(channel.pubsub().publish, keys.weights_channel, b"garbage")
    wait_until(lambda: "is truncated" in caplog.text)
    publish(trainer(), 1)
    assert one.has(1)
    assert "cannot be read, and is replaced" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"short", bytes(5 * LARGE)])
def test_damaged_leaves_are_not_delivered(trainer, player, channel, keys, caplog, damage):
    publisher = trainer()
    publish(publisher, 1, LARGE)
    for key in leaf_keys(channel, keys):
        channel.call("SET", key, damage)
    one = player()
    wait_until(lambda: "weights of" in caplog.text)
    publish(publisher, 2, LARGE)
    assert one.has(2)
    assert one.got == [2]


def test_leaves_that_are_gone(trainer, player, channel, keys):
    """Newer versions were published while they were fetched, or a broker has lost them."""
    publisher = trainer()
    publish(publisher, 1, LARGE)
    channel.call("DEL", *leaf_keys(channel, keys))
    one = player()
    publish(publisher, 2, LARGE)
    assert one.has(2)
    assert one.got == [2]


@pytest.mark.parametrize("nbytes", [-1, 0, 1 << 40])
def test_a_manifest_is_checked(nbytes):
    frame = codec.encode(network(1))
    manifest = Manifest(Version(1, 2), 3.0, nbytes, frame.copy(), None)
    with pytest.raises(DecodeError):
        Manifest.decode(bytes(manifest.encode()))
    whole = Manifest(Version(1, 2), 3.0, frame.nbytes, frame.copy(), [["a"], []])
    again = Manifest.decode(bytes(whole.encode()))
    assert again.version == (1, 2)
    assert again.keys == {"a"}


@pytest.mark.parametrize("leaves", [5, [5], [[5]], [[None]], {1: 2}])
def test_a_manifests_leaves_are_checked(leaves):
    frame = codec.encode(network(1))
    manifest = Manifest(Version(1, 2), 3.0, frame.nbytes, frame.copy(), leaves)
    with pytest.raises(DecodeError):
        Manifest.decode(bytes(manifest.encode()))


def test_it_is_restored_if_the_broker_has_lost_it(trainer, player, channel, keys):
    publisher = trainer()
    publisher.restore(channel)
    publish(publisher, 1, LARGE)
    publisher.restore(channel)
    assert publisher.flush(0.0)
    channel.call("DEL", keys.weights, *leaf_keys(channel, keys))
    publisher.restore(channel)
    assert publisher.flush(LONG_S)
    assert player().has(1)


def test_stop_sends_what_waits(trainer, player):
    """Also a network that was published right before, as at the end of a run."""
    for n in range(1, 11):
        publisher = trainer()
        publisher.publish(network(n, LARGE))
        publisher.stop()
    late = player()
    assert late.has(10)
    with pytest.raises(Closed):
        publisher.publish(network(1))
    publisher.stop()


def test_stop_of_a_receiver(trainer, player):
    one, publisher = player(), trainer()
    publish(publisher, 1)
    assert one.has(1)
    one.receiver.stop()
    one.receiver.stop()
    publish(publisher, 2)
    assert one.got == [1]
    assert not one.receiver._thread.is_alive()


def test_a_receiver_may_be_stopped_by_its_callback(trainer, broker, keys):
    got = []
    receiver = WeightsReceiver(broker, keys, lambda tree: (got.append(tree), receiver.stop()))
    receiver.start()
    publisher = trainer()
    publish(publisher, 1)
    wait_until(lambda: not receiver._thread.is_alive())
    publish(publisher, 2)
    assert len(got) == 1
