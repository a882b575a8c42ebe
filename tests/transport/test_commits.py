"""Consumers whose store lasts from one commit to the next, and those that take over from others."""

import logging
import threading

import pytest
from stream_support import LONG_S, STORE
from transport_support import wait_until

from agentlace.errors import StoreFull
from agentlace.transport import consumer as consumer_module
from agentlace.transport.channel import Channel
from agentlace.transport.cursor import Lease
from agentlace.transport.streams import START, Retention, StreamId, applied, cursors


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let consumers notice what is told to them in another thread sooner than usual."""
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 0.1)
    monkeypatch.setattr(Channel, "slice_s", 0.1)


@pytest.fixture
def where(keys):
    return keys.store(STORE), "robot"


def test_the_applied_and_the_committed_position_are_published(actor, record, channel, where):
    robot, committed = actor(), {}
    robot.send(0, 10)
    recorder = record(committed=committed)
    wait_until(lambda: robot.producer.applied(channel, "trainer") == 10)
    assert cursors(channel, *where) == {"trainer": START}
    kept = StreamId(recorder.positions["robot"].incarnation, 4)
    recorder.consumer.commit({"robot": kept})
    wait_until(lambda: cursors(channel, *where) == {"trainer": kept})
    assert committed == {"robot": kept}
    assert applied(channel, *where)["trainer"].number == 10
    channel.call("SREM", where[0].consumers, "trainer")  # a broker that has forgotten it
    wait_until(lambda: cursors(channel, *where) == {"trainer": kept})
    wait_until(lambda: robot.producer.applied(channel, "trainer") == 10)


def test_what_is_not_committed_is_not_trimmed(actor, record):
    robot = actor(retention=Retention(max_bytes=20_000))
    recorder = record(committed={})
    robot.send(0, 4, size=1000)
    assert recorder.has(4)
    with pytest.raises(StoreFull, match="not saved them yet"):
        robot.send(4, 5, size=1000, timeout_s=0.3)
    recorder.consumer.commit(dict(recorder.positions))
    robot.producer.flush(LONG_S)
    assert recorder.has(5)


def test_a_commit_does_not_move_a_consumer_that_commits_as_it_applies(actor, record):
    robot, recorder = actor(), record()
    robot.send(0, 10)
    assert recorder.has(10)
    recorder.consumer.commit({"robot": StreamId(recorder.positions["robot"].incarnation, 4)})
    robot.send(10, 12)
    assert recorder.has(12)


def test_between_entries_the_positions_tell_what_is_applied(actor, record):
    robot, recorder = actor(), record()
    recorder.wait.clear()
    robot.send(0, 5)
    wait_until(lambda: recorder.consumer.is_applying)
    with pytest.raises(TimeoutError, match=r"has been inserted for 0\.05 s"):
        with recorder.consumer.between_entries(0.05):
            pass
    recorder.wait.set()
    with recorder.consumer.between_entries(LONG_S):
        wait_until(lambda: recorder.positions["robot"].number == 5)
        robot.send(5, 6)
        threading.Event().wait(0.05)
        assert len(recorder.rows["robot"]) == 5
    assert recorder.has(6)


LEASE = Lease("none", "token")


def restored(record, positions, name="trainer:2"):
    return record(name=name, positions=positions, lease=LEASE)


def test_a_successor_reports_what_its_predecessor_let_go(actor, record, channel, where, caplog):
    robot = actor()
    first = record("trainer:1", lease=LEASE)
    robot.send(0, 30)
    assert first.has(30)
    first.consumer.stop()
    channel.call("XTRIM", where[0].stream("robot"), "MAXLEN", 0)
    old = {"robot": StreamId(first.positions["robot"].incarnation, 10)}
    with caplog.at_level(logging.WARNING):
        second = restored(record, old)
    assert second.consumer.gaps == 20
    assert "20 transitions of actor 'robot' are lost" in caplog.text
    robot.send(30, 31)
    wait_until(lambda: second.rows.get("robot") == [30])
    assert second.consumer.gaps == 20


def test_a_successor_that_finds_all_reports_nothing(actor, record, caplog):
    robot = actor()
    robot.send(0, 10)
    first = record("trainer:1", lease=LEASE)
    assert first.has(10)
    first.consumer.stop()
    old = {"robot": StreamId(first.positions["robot"].incarnation, 4)}
    with caplog.at_level(logging.WARNING):
        second = restored(record, old)
        wait_until(lambda: second.rows.get("robot") == [4, 5, 6, 7, 8, 9])
        third = restored(record, {}, "trainer:3")  # begins empty: it misses nothing
        assert third.has(10)
    assert second.consumer.gaps == third.consumer.gaps == 0
    assert "lost" not in caplog.text


def test_a_restarted_actors_loss_is_reported_though_its_numbers_begin_anew(
    actor, record, channel, where
):
    robot = actor()
    robot.send(0, 10)
    first = record("trainer:1", lease=LEASE)
    assert first.has(10)
    incarnation = first.positions["robot"].incarnation
    first.consumer.stop()
    channel.call("XTRIM", where[0].stream("robot"), "MAXLEN", 0)
    actor().send(0, 3)
    second = restored(record, {"robot": StreamId(incarnation, 4)})
    assert second.consumer.gaps == 6
    assert second.has(3)
