"""Marks in a stream: in their place, once, with a number of their own."""

import threading

import pytest
from stream_support import LONG_S, STORE, Actor, rows
from transport_support import broker_at, once, wait_until

from agentlace import codec
from agentlace.codec.mark import BEGIN, DISCARD, END, TRUNCATED
from agentlace.errors import StoreFull
from agentlace.transport import consumer as consumer_module
from agentlace.transport.channel import Channel
from agentlace.transport.consumer import Consumer
from agentlace.transport.streams import START, Retention, StreamId, cursors, newest_id

BEGINNING, ENDING = codec.Mark(BEGIN, None, 1), codec.Mark(END, TRUNCATED, 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 0.1)
    monkeypatch.setattr(Channel, "slice_s", 0.1)


class Listener:
    """A consumer that notes rows and marks in the order in which they come."""

    def __init__(self, broker, keys, positions=None):
        self.found = []
        positions = {} if positions is None else positions
        args = (broker, keys, STORE, self._apply, "recorder:x", positions)
        self.consumer = Consumer(*args, on_mark=self._mark)
        self.fails = False

    def _apply(self, actor, chunk, last):
        self.found += [row["n"] for row in chunk.rows()]

    def _mark(self, actor, mark, entry):
        if self.fails:
            raise RuntimeError("no disk")
        self.found.append((mark.what, mark.episode, entry.number))

    def wait(self, n):
        wait_until(lambda: len(self.found) >= n, what=f"{n} of {self.found}")
        return self.found


@pytest.fixture
def listen(broker, keys):
    found = []

    def listen(positions=None, start=True):
        found.append(Listener(broker, keys, positions))
        if start:
            found[-1].consumer.start()
        return found[-1]

    yield listen
    for listener in found:
        listener.consumer.stop()


def mark(robot, mark):
    robot.producer.pending.take_mark(codec.encode_mark(mark))


def test_marks_come_in_their_place(actor, listen):
    robot, listener = actor(), listen()
    mark(robot, BEGINNING)
    robot.send(0, 3)
    robot.producer.take(rows(3, 5), {})
    mark(robot, ENDING)
    robot.producer.flush(LONG_S)
    assert listener.wait(7) == [(BEGIN, 1, 1), 0, 1, 2, 3, 4, (END, 1, 7)]
    assert listener.consumer.applied == 5
    assert listener.consumer.gaps == listener.consumer.rejected == 0
    assert listener.consumer.positions["robot"].number == 7


def test_a_consumer_without_a_callback_passes_them(actor, record):
    robot, recorder = actor(), record()
    mark(robot, BEGINNING)
    robot.send(0, 2)
    mark(robot, ENDING)
    robot.send(2, 4)
    assert recorder.has(4)
    assert recorder.positions["robot"].number == 6
    assert recorder.consumer.gaps == recorder.consumer.rejected == 0


def test_a_callback_that_fails_does_not_end_the_consumer(actor, listen):
    robot, listener = actor(), listen()
    listener.fails = True
    mark(robot, BEGINNING)
    robot.send(0, 2)
    assert listener.wait(2) == [0, 1]


def test_what_is_no_mark_is_passed(actor, listen, channel, store):
    robot, listener = actor(), listen()
    robot.send(0, 1)
    last = newest_id(channel, store.stream("robot"))
    entry = (str(last.next()), "first", last.number + 1, "mark", b"rubbish")
    channel.call("XADD", store.stream("robot"), *entry)
    wait_until(lambda: listener.consumer.positions.get("robot", START).number == 2)
    assert listener.wait(1) == [0]


def test_a_consumer_goes_on_behind_a_mark(actor, listen):
    robot, positions = actor(), {}
    mark(robot, BEGINNING)
    robot.send(0, 2)
    first = listen(positions)
    first.wait(3)
    first.consumer.stop()
    mark(robot, ENDING)
    robot.send(2, 3)
    assert listen(positions).wait(2) == [(END, 1, 4), 2]


def test_a_missing_mark_is_a_gap(actor, listen, channel, store):
    robot = actor()
    robot.send(0, 1)
    mark(robot, ENDING)
    robot.send(1, 2)
    channel.call("XDEL", store.stream("robot"), f"{robot.producer._incarnation}-2")
    listener = listen()
    assert listener.wait(2) == [0, 1]
    assert listener.consumer.gaps == 1


def test_a_resent_mark_comes_once(actor, listen):
    """Its confirmation was lost on the way."""
    robot, listener = actor(), listen()
    robot.send(0, 1)
    mark(robot, ENDING)
    sent = robot.producer.pending[0]
    robot.producer.flush(LONG_S)
    sent.was_sent = True
    robot.producer.pending.appendleft(sent)
    robot.send(1, 2)
    assert listener.wait(3) == [0, (END, 1, 2), 1]


@once
class TestWhatIsPending:
    def test_what_is_held_is_not_sent(self, actor, listen):
        robot, listener = actor(), listen()
        robot.send(0, 2)
        mark(robot, BEGINNING)
        robot.producer.pending.hold_from = robot.producer.number
        robot.send(2, 4)
        assert listener.wait(2) == [0, 1]
        assert [sent.first for sent in robot.producer.pending] == [3, 4]
        robot.producer.pending.hold_from = None
        robot.producer.flush(LONG_S)
        assert listener.wait(5) == [0, 1, (BEGIN, 1, 3), 2, 3]

    def test_what_was_not_sent_can_be_discarded(self, actor):
        producer = actor().producer
        producer.take(rows(0, 2), {})
        before = producer.number
        mark_at = producer.number
        producer.pending.take_mark(codec.encode_mark(BEGINNING))
        producer.take(rows(2, 6), {})
        assert producer.pending.discard_after(mark_at)
        assert producer.number == before
        assert [sent.last for sent in producer.pending] == [2]

    def test_what_was_sent_keeps_its_number(self, actor, listen):
        robot, listener = actor(), listen()
        mark(robot, BEGINNING)
        robot.send(0, 2)
        robot.producer.take(rows(2, 4), {})
        assert not robot.producer.pending.discard_after(0)
        assert robot.producer.number == 3
        mark(robot, codec.Mark(DISCARD, None, 1))
        robot.send(4, 5)
        assert listener.wait(5) == [(BEGIN, 1, 1), 0, 1, (DISCARD, 1, 4), 4]

    def test_what_may_have_been_sent_keeps_its_number(self, actor):
        producer = actor().producer
        producer.take(rows(0, 2), {})
        producer.pending[0].was_sent = True
        producer.take(rows(2, 4), {})
        assert not producer.pending.discard_after(0)
        assert producer.number == 2

    def test_the_oldest_gives_way(self, actor, listen):
        robot, listener = actor(), listen()
        robot.send(0, 1)
        for n in range(1, 11):
            robot.producer.take(rows(n, n + 1), {})
        assert robot.producer.pending.drop_oldest(4) == 6
        assert robot.producer.pending.drop_oldest(4) == 0
        robot.producer.flush(LONG_S)
        assert listener.wait(5) == [0, 7, 8, 9, 10]
        assert listener.consumer.gaps == 6


def test_a_broker_that_forgot_a_mark_gets_it_again(own_broker, keys):
    """It was killed before its log was written, and has come back without the newest."""
    broker = broker_at(own_broker.settings.url)
    robot, listener = Actor(broker, keys), Listener(broker, keys)
    robot.announce()
    try:
        mark(robot, BEGINNING)
        robot.send(0, 2)
        mark(robot, ENDING)
        robot.producer.flush(LONG_S)
        channel = broker.channel()
        stream = keys.store(STORE).stream("robot")
        assert newest_id(channel, stream).number == 4
        channel.call("DEL", stream)
        robot.producer._in_doubt = True
        robot.send(2, 3)
        listener.consumer.start()
        assert listener.wait(5) == [(BEGIN, 1, 1), 0, 1, (END, 1, 4), 2]
        channel.close()
    finally:
        listener.consumer.stop()
        robot.channel.close()


def test_a_position_can_be_in_front_of_a_mark(actor, listen):
    """Where a recorder goes on that has not committed the episode that begins there."""
    robot = actor()
    robot.send(0, 1)
    mark(robot, BEGINNING)
    robot.send(1, 3)
    positions = {"robot": StreamId(robot.producer._incarnation, 1)}
    assert listen(positions).wait(3) == [(BEGIN, 1, 2), 1, 2]


def test_marks_do_not_wait_for_a_broker(actor):
    """They are taken while another thread would hold the connection."""
    robot = actor()
    robot.channel.close()
    done = threading.Event()

    def take():
        mark(robot, BEGINNING)
        done.set()

    threading.Thread(target=take).start()
    assert done.wait(LONG_S)


@once
class TestWhatIsAppliedButNotCommitted:
    """A recorder keeps an episode when it has ended: until then the stream must hold it."""

    def consumer(self, broker, keys, positions, committed):
        args = (broker, keys, STORE, lambda *_: None, "recorder:x", positions)
        return Consumer(*args, committed=committed)

    def test_only_what_is_committed_is_published(self, actor, broker, keys, channel):
        robot, positions, committed = actor(), {}, {}
        consumer = self.consumer(broker, keys, positions, committed)
        consumer.start()
        try:
            robot.send(0, 10)
            wait_until(lambda: positions.get("robot", START).number == 10)
            where = (keys.store(STORE), "robot")
            assert cursors(channel, *where)["recorder:x"] == START
            kept = StreamId(positions["robot"].incarnation, 4)
            consumer.commit({"robot": kept})
            wait_until(lambda: cursors(channel, *where)["recorder:x"] == kept)
            robot.send(10, 12)
            wait_until(lambda: positions["robot"].number == 12)
        finally:
            consumer.stop()
        assert cursors(channel, *where)["recorder:x"] == kept
        assert committed == {"robot": kept}

    def test_what_is_not_committed_is_not_trimmed(self, actor, broker, keys, channel):
        robot, positions = actor(retention=Retention(max_bytes=20_000)), {}
        consumer = self.consumer(broker, keys, positions, {})
        consumer.start()
        try:
            robot.send(0, 4, size=1000)
            wait_until(lambda: positions.get("robot", START).number == 4)
            with pytest.raises(StoreFull, match="'recorder"):
                robot.send(4, 5, size=1000, timeout_s=0.2)
            consumer.commit({"robot": positions["robot"]})
            robot.producer.flush(LONG_S)
            wait_until(lambda: positions["robot"].number == 5)
        finally:
            consumer.stop()

    def test_a_restarted_one_publishes_what_is_committed(self, actor, broker, keys, channel):
        robot, incarnation = actor(), None
        robot.send(0, 10)
        incarnation = robot.producer._incarnation
        kept = {"robot": StreamId(incarnation, 6)}
        consumer = self.consumer(broker, keys, dict(kept), dict(kept))
        consumer.start()
        try:
            wait_until(lambda: consumer.positions["robot"].number == 10)
            channel.call("SREM", keys.store(STORE).consumers, "recorder:x")
            wait_until(lambda: cursors(channel, keys.store(STORE), "robot"))
            assert cursors(channel, keys.store(STORE), "robot")["recorder:x"].number == 6
        finally:
            consumer.stop()
