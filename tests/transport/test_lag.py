"""Who the registered consumers are, how far behind, and what is said of the slow one."""

import contextlib
import os
import re
import socket

import pytest
from stream_support import STORE, Actor, Recorder
from transport_support import broker_at, wait_until

from agentlace.errors import StoreFull
from agentlace.transport import consumer as consumer_module
from agentlace.transport import lag
from agentlace.transport.channel import Channel
from agentlace.transport.keys import SEEN_MS, ServiceKeys
from agentlace.transport.streams import Retention, consumers

ME = re.escape(f"(host {socket.gethostname()}, pid {os.getpid()}, alive)")


@pytest.fixture
def broker(broker_url):
    return broker_at(broker_url)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 0.1)
    monkeypatch.setattr(Channel, "slice_s", 0.1)


def states(channel, store):
    return {state.name: state for state in lag.consumer_states(channel, store)}


def test_consumers_are_listed_with_their_lag(actor, record, store, channel, broker):
    record("quick")
    slow = record("slow")
    robots = [actor("a"), actor("b")]
    for robot in robots:
        robot.send(0, 10)
    assert slow.has(10, "a") and slow.has(10, "b")
    slow.wait.clear()
    robots[0].send(10, 15)
    robots[1].send(10, 17)

    def told():
        found = states(channel, store)
        return found if found["quick"].behind == 0 else None

    found = wait_until(told)
    assert list(found) == ["slow", "quick"]  # the slowest first
    assert found["slow"].behind == 12
    for state in found.values():
        assert (state.host, state.pid) == (socket.gethostname(), os.getpid())
        assert (state.service, state.store) == ("trainer:5555", STORE)
        assert 0 <= state.progress_s < 60
    assert found["quick"].is_alive


def test_the_lag_behind_an_actor_that_was_restarted(actor, record, store, channel):
    record("slow", start=False).consumer.register()
    quick = record("quick")
    actor().send(0, 10)
    actor().send(10, 30)
    assert quick.has(30)
    actor().send(30, 35)
    assert states(channel, store)["slow"].behind == 35
    channel.call("HSET", store.cursor("slow"), "robot", str(quick.positions["robot"]))
    assert states(channel, store)["slow"].behind in (0, 5)


def test_a_consumer_that_is_silent(record, store, channel):
    recorder = record("slow")
    assert states(channel, store)["slow"].is_alive
    recorder.consumer.stop()
    channel.call("PEXPIRE", store.consumer("slow"), SEEN_MS - 3_600_000)
    state = states(channel, store)["slow"]
    assert not state.is_alive and 3600 <= state.seen_s < 3700
    assert "last seen 36" in lag.described(channel, store, "slow")
    channel.call("DEL", store.consumer("slow"))
    state = states(channel, store)["slow"]
    assert (state.host, state.seen_s, state.progress_s) == ("?", None, None)
    assert "not seen for days" in lag.described(channel, store, "slow")


def test_all_stores_of_a_namespace_and_no_others(broker, namespace, channel):
    made = [("a", 1, "env"), ("a", 2, "env"), ("a", 1, "demos:left"), ("a*", 3, "env")]
    for suffix, port, store in made:
        keys = ServiceKeys(namespace + suffix, "trainer", port)
        Recorder(broker, keys).consumer._keys = keys.store(store)
        channel.call("SADD", keys.store(store).consumers, "trainer")
    found = {keys.prefix for keys in lag.stores(channel, namespace + "a")}
    of_a = [ServiceKeys(namespace + s, "trainer", p).store(n) for s, p, n in made if s == "a"]
    assert found == {keys.prefix for keys in of_a}
    assert [k.name for k in lag.stores(channel, namespace + "a", "demos:left")] == ["demos:left"]
    assert len(lag.stores(channel, namespace + "a*")) == 1


def test_one_that_is_forgotten_holds_nothing_up(actor, record, store, channel):
    gone, quick = record("gone", start=False), record("quick")
    gone.consumer.register()
    robot = actor(retention=Retention(max_bytes=50_000))
    sent = 0
    with pytest.raises(StoreFull):
        while sent < 100:
            sent += 1
            robot.send(sent - 1, sent, timeout_s=0.05, size=2500)
    assert lag.forget(channel, store, "gone")
    assert not lag.forget(channel, store, "gone")
    robot.flush_at_last()
    robot.send(sent, sent + 10, size=2500)
    assert quick.has(sent + 10) and quick.consumer.gaps == 0
    assert consumers(channel, store) == ["quick"]
    assert channel.call("EXISTS", store.consumer("gone"), store.cursor("gone")) == 0


def test_one_that_is_alive_and_was_forgotten_comes_back(actor, record, store, channel):
    recorder, robot = record("recorder:chaos"), actor()
    robot.send(0, 10)
    assert recorder.has(10)
    assert lag.forget(channel, store, "recorder:chaos")
    wait_until(lambda: "recorder:chaos" in states(channel, store))
    assert states(channel, store)["recorder:chaos"].behind == 0


def test_the_message_of_a_full_store_names_the_slow_consumer(actor, record, caplog):
    slow, quick = record("recorder:pick"), record("trainer")
    slow.wait.clear()
    robot = actor(retention=Retention(max_bytes=100_000))
    sent = 0
    with pytest.raises(StoreFull) as caught:
        while sent < 100:
            sent += 1
            robot.send(sent - 1, sent, timeout_s=0.05, size=2500)
    behind = sent - 1
    assert re.search(f"consumer 'recorder:pick' {ME} is {behind} transitions", str(caught.value))
    assert "agentlace consumers forget" in str(caught.value)
    assert quick.has(behind)
    robot.retention = Retention(max_bytes=100_000, when_full="drop_oldest")
    robot.producer.flush(1.0)
    assert re.search(f"dropped the oldest .* consumer 'recorder:pick' {ME}", caplog.text)


def test_the_message_of_a_store_without_a_consumer(actor):
    robot = actor(retention=Retention(max_bytes=10_000))
    with pytest.raises(StoreFull, match="no consumer is registered"):
        for n in range(10):
            robot.send(n, n + 1, timeout_s=0.05, size=1000)


def test_the_message_of_a_full_broker_names_the_slow_consumer(own_broker, keys):
    broker = broker_at(own_broker.settings.url)
    with contextlib.closing(broker.channel()) as channel, contextlib.ExitStack() as stack:
        slow = Recorder(broker, keys, "recorder:pick")
        slow.wait.clear()
        slow.consumer.start()
        stack.callback(slow.consumer.stop)
        stack.callback(slow.wait.set)
        robot = Actor(broker, keys)
        robot.send(0, 5)
        channel.call("CONFIG", "SET", "maxmemory", "1")
        named = f"has no room .*; in store 'env' consumer 'recorder:pick' {ME} is 5 transitions"
        with pytest.raises(StoreFull, match=named):
            robot.send(5, 10, timeout_s=0.2)
        channel.call("CONFIG", "SET", "maxmemory", "0")
        robot.vanish()
