"""Transition streams: each acknowledged row arrives once, whatever is cut, killed or full."""

import contextlib
import json
import os
import re
import signal
import threading
import time

import pytest
from stream_support import LONG_S, Actor, Recorder, rows
from transport_support import Proxy, broker_at, channel_to, kill_clients, wait_until

from agentlace.errors import ActorReplaced, AlreadyServed, BrokerUnreachable, StoreFull
from agentlace.transport import consumer as consumer_module
from agentlace.transport.connection import Broker
from agentlace.transport.cursor import Lease
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.streams import START, Retention, StreamId, consumers
from tests.ports import free_port


@pytest.fixture
def broker(own_broker):
    return broker_at(own_broker.settings.url)


def test_exactly_once_while_connections_are_cut(broker, actor, record):
    """All connections are cut all the time, while thousands of chunks are on their way."""
    recorder = record()
    robot = actor()
    stop = threading.Event()

    def kill():
        with contextlib.closing(broker.channel()) as channel:
            while not stop.wait(0.01):
                kill_clients(channel)

    killer = threading.Thread(target=kill)
    killer.start()
    failures, sent = 0, 0
    try:
        while sent < 3000:
            size = 1 + sent % 3
            robot.producer.take(rows(sent, sent + size), {})
            sent += size
            with contextlib.suppress(BrokerUnreachable):
                robot.producer.flush(LONG_S)
                continue
            failures += 1
    finally:
        stop.set()
        killer.join()
    robot.flush_at_last()
    assert recorder.has(sent)
    assert recorder.consumer.gaps == recorder.consumer.rejected == 0
    assert failures
    assert recorder.consumer._channel.connects > 1


@pytest.fixture
def slow(own_broker):
    """Return a way to a broker that can be held up."""
    with Proxy(own_broker.settings.port) as proxy:
        proxy.broker = broker_at(f"redis://127.0.0.1:{proxy.port}", over_tcp=True)
        yield proxy


def appended(url):
    """Return how many XADD of chunks the broker has executed or refused."""
    with channel_to(url) as channel:
        for line in bytes(channel.call("INFO", "commandstats")).splitlines():
            if line.startswith(b"cmdstat_xadd:"):
                return int(line.split(b"calls=")[1].split(b",")[0])
    return 0


def test_a_slow_link_gets_there_in_several_calls(own_broker, slow, actor):
    """A chunk that takes longer than the deadline is not begun anew with each call."""
    robot = actor(at=slow.broker)
    robot.send(0, 1)
    before = appended(own_broker.settings.url)
    slow.flows.clear()
    for _ in range(5):
        with pytest.raises(BrokerUnreachable, match="no answer within"):
            robot.producer.take(rows(1, 2), {})
            robot.producer.flush(0.02)
    assert robot.channel.is_connected
    slow.flows.set()
    robot.producer.flush(LONG_S)
    assert not robot.producer.pending
    assert robot.channel.connects == 1
    assert appended(own_broker.settings.url) - before == 5


def test_a_stored_chunk_is_not_sent_again(own_broker, slow, actor, store):
    robot = actor(at=slow.broker)
    robot.send(0, 1)
    before = appended(own_broker.settings.url)
    slow.flows.clear()
    with pytest.raises(BrokerUnreachable):
        robot.send(1, 11, timeout_s=0.02)
    wait_until(lambda: appended(own_broker.settings.url) == before + 1)
    slow.cut()
    slow.flows.set()
    robot.flush_at_last()
    assert appended(own_broker.settings.url) == before + 1
    assert robot.channel.call("XLEN", store.stream("robot")) == 2
    robot.send(11, 12)


def test_a_chunk_that_was_lost_on_its_way_is_sent_again(own_broker, slow, actor, record):
    recorder, robot = record(at=slow.broker), actor(at=slow.broker)
    robot.send(0, 10)
    for n in range(10, 60, 10):
        slow.cut()
        with contextlib.suppress(BrokerUnreachable):
            robot.send(n, n + 10)
    robot.flush_at_last()
    assert recorder.has(60)


def test_a_killed_broker_comes_back_with_everything(own_broker, actor, record):
    """Every row that was acknowledged before the SIGKILL arrives, and none of them twice."""
    recorder, robot = record(), actor()
    acknowledged = threading.Event()
    sent = 0
    for _ in range(3):
        acknowledged.clear()
        killer = threading.Thread(target=_kill_after, args=(acknowledged, own_broker))
        killer.start()
        with contextlib.suppress(BrokerUnreachable):
            for _ in range(400):
                robot.producer.take(rows(sent, sent + 5), {})
                sent += 5
                robot.producer.flush(LONG_S)
                acknowledged.set()
        killer.join()
        own_broker.start()
        robot.flush_at_last()
    assert recorder.has(sent)
    assert recorder.consumer.gaps == recorder.consumer.rejected == 0
    assert record("late").has(sent)


def _kill_after(event, embedded):
    assert event.wait(LONG_S)
    os.kill(embedded.pid, signal.SIGKILL)
    embedded.wait()


def forget(channel, stream, count):
    """Let the broker forget the last entries, as one that was killed may have done."""
    entries = channel.call("XRANGE", stream, "-", "+")
    channel.call("DEL", stream)
    for entry, fields in entries[:-count]:
        channel.call("XADD", stream, bytes(entry), *map(bytes, fields))


@pytest.mark.parametrize("idle", [False, True])
def test_what_a_killed_broker_has_forgotten_is_sent_again(own_broker, actor, record, store, idle):
    """It confirms before its log is written; a store that has the rows does not get them twice."""
    quick, robot = record("quick"), actor()
    arrays = rows(0, 30, size=1000)
    for n in range(0, 30, 5):
        robot.producer.take(arrays[n : n + 5], {})
        robot.producer.flush(LONG_S)
    for row in arrays:
        row["observations"][:] = -1  # they are the actor's again
    assert quick.has(30)
    with channel_to(own_broker.settings.url) as channel:
        forget(channel, store.stream("robot"), 3)
        kill_clients(channel)
        beats(robot)
    sent = 30 if idle else 35
    robot.producer.take(rows(30, sent), {})
    robot.flush_at_last()
    assert quick.has(sent)
    late = record("late")
    assert late.has(sent)
    assert late.consumer.gaps == quick.consumer.gaps == 0


@pytest.fixture
def forgetful():
    """A broker that comes back empty."""
    with EmbeddedBroker(Settings(port=free_port())) as embedded:
        embedded.broker = broker_at(embedded.settings.url)
        yield embedded


def test_a_broker_that_comes_back_empty(forgetful, actor, record):
    recorder, robot = record(at=forgetful.broker), actor(at=forgetful.broker)
    robot.send(0, 10)
    assert recorder.has(10)
    forgetful.stop()
    robot.producer.take(rows(10, 20), {})
    with pytest.raises(BrokerUnreachable):
        robot.producer.flush(0.1)
    forgetful.start()
    robot.flush_at_last()
    wait_until(lambda: beats(robot))
    assert recorder.has(20)
    robot.send(20, 30)
    assert recorder.has(30)
    assert recorder.consumer.gaps == 0


def beats(actor):
    """Do what the client's heartbeat does."""
    with (
        contextlib.closing(actor.channel.broker.channel()) as channel,
        contextlib.suppress(BrokerUnreachable),
    ):
        channel.call("SET", actor._presence, "{}")
        actor.producer.beat(channel)
        return True


def test_a_replaced_actor_is_told_so_about_an_unconfirmed_chunk(own_broker, slow, actor):
    old = actor(at=slow.broker)
    old.send(0, 10)
    slow.flows.clear()
    with pytest.raises(BrokerUnreachable):
        old.send(10, 20, timeout_s=0.02)
    actor().send(20, 30)
    slow.flows.set()
    with pytest.raises(ActorReplaced):
        old.producer.flush(LONG_S)


def test_a_full_broker(own_broker, actor, record):
    """Nothing follows the refused chunk, nothing is lost, and it goes on when there is room."""
    recorder, robot = record(), actor()
    robot.send(0, 10)
    with channel_to(own_broker.settings.url) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "1")
        for start in (10, 20):
            with pytest.raises(StoreFull, match="has no room"):
                robot.send(start, start + 10, timeout_s=0.2)
        channel.call("CONFIG", "SET", "maxmemory", "0")
    robot.send(30, 40)
    assert recorder.has(40)
    assert recorder.consumer.gaps == 0


def test_a_consumer_waits_for_its_broker(own_broker, actor, record, caplog):
    recorder = record()
    robot = actor()
    robot.send(0, 10)
    assert recorder.has(10)
    own_broker.stop()
    wait_until(lambda: "store 'env' waits for the broker" in caplog.text)
    own_broker.start()
    robot.producer.take(rows(10, 20), {})
    robot.flush_at_last()
    assert recorder.has(20)


def test_stop_is_quick_also_while_the_broker_is_away(own_broker, record):
    recorder = record()
    own_broker.stop()
    began = time.monotonic()
    recorder.consumer.stop()
    recorder.consumer.stop()
    assert time.monotonic() - began < consumer_module.JOIN_TIMEOUT_S


def test_cursors_come_back_with_their_consumer(forgetful, actor, record, store):
    """A broker that came back empty knows again who has read what, so that nothing is trimmed."""
    recorder, robot = record(at=forgetful.broker), actor(at=forgetful.broker)
    robot.send(0, 10)
    assert recorder.has(10)
    forgetful.stop()
    forgetful.start()
    with channel_to(forgetful.settings.url) as channel:
        wait_until(lambda: channel.call("HGET", store.cursor("trainer"), "robot"))
        found = StreamId.parse(channel.call("HGET", store.cursor("trainer"), "robot"))
        assert found == recorder.positions["robot"] > START
        assert channel.call("SISMEMBER", store.consumers, "trainer") == 1


# -- a trainer that was replaced without noticing --------------------------------------------------


@pytest.fixture
def consume(broker, keys):
    """Return a function that makes a trainer's recorder, by the token of its lease."""
    with contextlib.ExitStack() as stack:

        def consume(token):
            with contextlib.closing(broker.channel()) as channel:
                channel.call("SET", keys.server, json.dumps({"token": token, "host": token}))
            lease = Lease(keys.server, token)
            recorder = Recorder(broker, keys, f"trainer:{token}", lease=lease)
            stack.callback(recorder.consumer.stop)
            stack.callback(recorder.wait.set)
            return recorder

        yield consume


def test_a_zombie_trainer_has_nothing_removed_that_its_successor_has_not_read(
    actor, consume, store, channel
):
    robot, zombie = actor(), consume("first")
    zombie.consumer.start()
    robot.send(0, 10)
    assert zombie.has(10)
    zombie.wait.clear()
    robot.send(10, 20)
    successor = consume("second")
    successor.wait.clear()
    successor.consumer.start()
    robot.producer.close(channel, 1.0)
    zombie.wait.set()  # it wakes, and has read everything
    assert zombie.has(20)
    zombie.consumer.stop()
    assert channel.call("XLEN", store.stream("robot")) == 2
    assert consumers(channel, store) == ["trainer:second"]
    successor.wait.set()
    assert successor.has(20)
    assert successor.consumer.gaps == 0


def test_a_zombie_trainer_that_connects_anew_ends(actor, consume, store, channel):
    zombie, successor = consume("first"), consume("second")
    successor.consumer.start()
    with pytest.raises(AlreadyServed, match="second"):
        zombie.consumer.register()
    assert consumers(channel, store) == ["trainer:second"]


def test_a_consumer_that_was_taken_off_the_list_comes_back(actor, record, store, channel):
    recorder, robot = record(), actor()
    robot.send(0, 10)
    assert recorder.has(10)
    wait_until(lambda: robot.producer.applied(channel, "trainer") == 10)
    channel.call("SREM", store.consumers, "trainer")
    channel.call("DEL", store.cursor("trainer"))
    wait_until(lambda: robot.producer.applied(channel, "trainer") == 10)


# -- a broker that is full -------------------------------------------------------------------------


def fill(channel):
    """Leave a broker no room for anything more."""
    used = re.search(rb"used_memory:(\d+)", bytes(channel.call("INFO", "memory")))
    channel.call("CONFIG", "SET", "maxmemory", used[1])


def test_a_full_broker_serves_on_when_what_it_holds_was_read(own_broker, keys, store):
    """Neither end may write: not the next chunk, nor that all before it was read."""
    broker = Broker(own_broker.settings.url)
    with contextlib.closing(broker.channel()) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "100mb")
        robot = Actor(broker, keys)
        robot.announce()
        recorder = Recorder(broker, keys)
        recorder.consumer.start()
        recorder.wait.clear()
        robot.send(0, 50, size=100_000)
        fill(channel)
        sent = 50
        with pytest.raises(StoreFull, match="start or speed up the consumers"):
            while sent < 200:
                sent += 1
                robot.send(sent - 1, sent, timeout_s=0.1, size=100_000)
        recorder.wait.set()
        robot.flush_at_last()
        for n in range(sent, sent + 50):
            robot.send(n, n + 1, size=100_000)
        assert recorder.has(sent + 50)
        assert recorder.consumer.gaps == recorder.consumer.rejected == 0
        recorder.consumer.stop()
        robot.vanish()


def test_in_a_full_broker_a_successor_reads_before_it_can_register(
    own_broker, actor, record, consume, store, channel
):
    """Until it can, its predecessor stays: what only that one has not read may not be trimmed."""
    predecessor, quick, robot = consume("first"), record("recorder:quick"), actor()
    predecessor.consumer.register()
    for n in range(0, 50, 5):
        robot.send(n, n + 5)
    assert quick.has(50)
    successor = consume("second")
    limit = bytes(channel.call("CONFIG", "GET", "maxmemory")[1])
    channel.call("CONFIG", "SET", "maxmemory", "1")
    successor.consumer.start()
    with pytest.raises(StoreFull):
        robot.send(50, 55, timeout_s=0.1)
    assert successor.has(50)
    assert consumers(channel, store) == ["recorder:quick", "trainer:first"]
    channel.call("CONFIG", "SET", "maxmemory", limit)
    wait_until(lambda: consumers(channel, store) == ["recorder:quick", "trainer:second"])
    robot.flush_at_last()
    assert successor.has(55) and quick.has(55)
    assert successor.consumer.gaps == quick.consumer.gaps == 0


def test_a_full_broker_drops_the_oldest_where_that_is_wanted(own_broker, keys, store):
    broker = Broker(own_broker.settings.url)
    with contextlib.closing(broker.channel()) as channel:
        channel.call("SADD", store.consumers, "slow")
        robot = Actor(broker, keys, retention=Retention(when_full="drop_oldest"))
        robot.announce()
        for n in range(20):
            robot.send(n, n + 1, size=100_000)
        fill(channel)
        for n in range(20, 60):
            robot.send(n, n + 1, size=100_000)
        assert robot.producer.dropped > 0
        robot.vanish()


def test_streams_leave_the_broker_half_of_its_memory(own_broker, keys):
    broker = Broker(own_broker.settings.url)
    with contextlib.closing(broker.channel()) as channel:
        channel.call("CONFIG", "SET", "maxmemory", "100mb")
        robot = Actor(broker, keys)
        robot.send(0, 1)
        robot.producer.register(channel)
        assert robot.producer._room.share_bytes == 50 << 20
        robot.stores = 5
        robot.producer.register(channel)
        assert robot.producer._room.share_bytes == 10 << 20
        robot.vanish()
