"""Transition streams: what is sent arrives once, in order, in every store; budgets; goodbyes."""

import contextlib
import threading

import numpy as np
import pytest
from stream_support import LONG_S, STORE, rows
from transport_support import wait_until

from agentlace import codec
from agentlace.errors import ActorReplaced, BrokerUnreachable, EncodeError, StoreFull
from agentlace.transport import consumer as consumer_module
from agentlace.transport import cutting, fetching
from agentlace.transport.channel import Channel
from agentlace.transport.consumer import Consumer
from agentlace.transport.keys import ORPHAN_MS
from agentlace.transport.streams import START, Retention, StreamId, newest_id

MIB = 1 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let consumers look for actors that are gone more often than is sensible."""
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 0.1)
    monkeypatch.setattr(Channel, "slice_s", 0.1)


def test_rows_arrive_once_and_in_order(actor, record):
    recorder, robot = record(), actor()
    for start in range(0, 300, 10):
        robot.send(start, start + 10)
    assert recorder.has(300)
    assert recorder.consumer.applied == 300
    assert recorder.consumer.gaps == recorder.consumer.rejected == 0
    assert recorder.positions["robot"].number == 300


def test_several_actors(actor, record):
    recorder = record()
    robots = [actor(f"robot{n}") for n in range(4)]
    for start in range(0, 100, 25):
        for robot in robots:
            robot.send(start, start + 25)
    assert all(recorder.has(100, robot.name) for robot in robots)


def test_a_new_actor_is_noticed_at_once(actor, record, monkeypatch):
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 1000.0)
    recorder = record()
    actor("first").send(0, 1)
    assert recorder.has(1, "first")
    actor("second").send(0, 1)
    assert recorder.has(1, "second")


def test_a_new_consumer_reads_all_that_is_there(actor, record):
    robot = actor()
    robot.send(0, 50)
    assert record("early").has(50)
    assert record("late").has(50)
    assert not record("late again", positions={"robot": StreamId(1 << 62, 1)}).rows


def test_a_consumer_goes_on_where_it_stopped(actor, record):
    robot, positions, found = actor(), {}, []
    for start in range(0, 100, 20):
        recorder = record(positions=positions)
        robot.send(start, start + 20)
        wait_until(lambda r=recorder: r.consumer.applied == 20)
        recorder.consumer.stop()
        found += recorder.rows["robot"]
        robot.producer.take(rows(start + 20, start + 20), {})
    assert found == list(range(100))


def test_a_consumer_that_stops_in_the_middle_of_a_batch(actor, record):
    """What was fetched and not applied is fetched again."""
    robot, positions = actor(), {}
    for n in range(60):
        robot.send(n, n + 1)
    first = record(positions=positions, start=False)
    first.wait.clear()
    first.consumer.start()
    wait_until(lambda: first.consumer._thread)
    stopping = threading.Thread(target=first.consumer.stop)
    stopping.start()
    wait_until(first.consumer._stop.is_set)
    first.wait.set()
    stopping.join()
    second = record(positions=positions)
    wait_until(lambda: second.positions.get("robot", START).number == 60)
    assert first.rows.get("robot", []) + second.rows.get("robot", []) == list(range(60))


def test_large_chunks_are_fetched_a_few_at_a_time(actor, record, monkeypatch):
    monkeypatch.setattr(fetching, "BATCH_BYTES", 2 * MIB)
    robot = actor()
    for n in range(40):
        robot.send(n, n + 1, size=MIB // 4)
    recorder = record(start=False)
    adapt, fetched = recorder.consumer._fetching.adapt, []

    def count(reply):
        fetched.extend(len(entries) for key, entries in reply if b"robot" in bytes(key))
        adapt(reply)

    recorder.consumer._fetching.adapt = count
    recorder.consumer.start()
    assert recorder.has(40)
    assert sum(fetched) == 40
    assert max(fetched) <= 4
    for n in range(40, 100):
        robot.send(n, n + 1)
    assert recorder.has(100)
    wait_until(lambda: recorder.consumer._fetching.entries == fetching.BATCH_ENTRIES)


def test_transitions_that_are_no_dicts(actor, broker, keys):
    found = []
    consumer = Consumer(broker, keys, STORE, lambda a, c, last: found.extend(c.rows()), "t", {})
    consumer.start()
    robot = actor()
    values = [1, "two", {"a": [1, 2]}, None, (3.5, {"b": b"4"})]
    robot.producer.take(values, {})
    robot.producer.flush(LONG_S)
    wait_until(lambda: len(found) == 5)
    assert found == values
    consumer.stop()


def test_what_a_consumer_has_applied_is_told(actor, record, channel):
    robot = actor()
    assert robot.producer.applied(channel, "trainer") == 0
    robot.send(0, 30)
    assert robot.producer.applied(channel, "trainer") == 0
    record()
    wait_until(lambda: robot.producer.applied(channel, "trainer") == 30)


def test_numbers_of_an_earlier_run_do_not_count(actor, record, channel):
    robot = actor()
    robot.send(0, 30)
    assert record().has(30)
    again = actor()
    again.send(30, 31)
    wait_until(lambda: again.producer.applied(channel, "trainer") == 1)


def test_a_tiny_deadline_on_a_live_broker(actor, record):
    """Programs set timeout_ms to 5: chunks of any size arrive all the same."""
    recorder, robot = record(), actor()
    robot.producer.take(rows(0, 20, size=MIB // 4), {})
    attempts = 0
    while robot.producer.pending:
        attempts += 1
        with contextlib.suppress(BrokerUnreachable):
            robot.producer.flush(0.001)
        assert attempts < 10_000
    assert recorder.has(20)
    assert robot.channel.connects == 1


def test_nothing_is_held_for_a_broker_in_this_process(actor, any_broker_url):
    robot = actor()
    robot.send(0, 10)
    assert (len(robot.producer._held) == 0) == any_broker_url.startswith("memory")


def test_a_restarted_actor_has_a_larger_incarnation(actor, record, store, channel):
    recorder, robot = record(), actor()
    robot.send(0, 10)
    before = newest_id(channel, store.stream("robot"))
    again = actor()
    again.send(10, 20)
    after = newest_id(channel, store.stream("robot"))
    assert after.incarnation > before.incarnation
    assert after.number == before.number == 10
    assert recorder.has(20)
    assert recorder.consumer.gaps == 0


def test_incarnations_grow_though_the_brokers_clock_stands_back(actor, record, store, channel):
    future = 1 << 60
    stream = store.stream("robot")
    channel.call("XADD", stream, f"{future}-5", "first", 1, "chunk", codec.encode_chunk(rows(0, 5)))
    channel.call("SADD", store.actors, "robot")
    recorder, robot = record(), actor()
    robot.send(5, 10)
    assert newest_id(channel, stream).incarnation == future + 1
    assert recorder.has(10)


def test_incarnations_grow_over_what_consumers_know(actor, record, channel, store):
    """The broker came back empty, and its clock is behind."""
    positions = {"robot": StreamId(1 << 60, 5)}
    recorder = record(positions=positions)
    actor().send(0, 10)
    assert recorder.has(10)


def test_an_actor_that_was_replaced_may_not_send(actor, record):
    recorder, old = record(), actor()
    old.send(0, 10)
    new = actor()
    new.send(10, 20)
    for _ in range(2):
        with pytest.raises(ActorReplaced, match="a newer process uses actor_id 'robot'"):
            old.send(100, 101)
    new.send(20, 30)
    assert recorder.has(30)


def add(channel, store, entry_id, first, chunk):
    channel.call("XADD", store.stream("robot"), entry_id, "first", first, "chunk", chunk)
    channel.call("SADD", store.actors, "robot")


def test_a_gap_is_reported(record, store, channel, keys, caplog):
    channel.call("SET", keys.client("robot"), "{}")
    add(channel, store, "7-10", 1, codec.encode_chunk(rows(0, 10)))
    recorder = record()
    assert recorder.has(10)
    add(channel, store, "7-30", 26, codec.encode_chunk(rows(25, 30)))
    wait_until(lambda: recorder.consumer.applied == 15)
    assert recorder.consumer.gaps == 15
    assert "15 transitions of actor 'robot' before 7-30 are lost" in caplog.text
    add(channel, store, "8-7", 3, codec.encode_chunk(rows(30, 35)))
    wait_until(lambda: recorder.consumer.applied == 20)
    assert recorder.consumer.gaps == 17


def test_rows_that_are_known_are_dropped(record, store, channel, keys):
    """A resend may be cut differently."""
    channel.call("SET", keys.client("robot"), "{}")
    add(channel, store, "7-10", 1, codec.encode_chunk(rows(0, 10)))
    add(channel, store, "7-15", 6, codec.encode_chunk(rows(5, 15)))
    add(channel, store, "7-16", 1, codec.encode_chunk(rows(0, 16)))
    recorder = record()
    assert recorder.has(16)
    add(channel, store, "7-18", 15, codec.encode_chunk(rows(14, 18)))
    assert recorder.has(18)
    assert recorder.consumer.gaps == 0


@pytest.mark.parametrize(
    "fields",
    [
        ("first", 1, "chunk", b"garbage"),
        ("first", "x", "chunk", b""),
        ("first", 1),
        ("other", 1),
        ("first", 5, "chunk", bytes(codec.encode_chunk(rows(0, 1)))),
    ],
)
def test_garbage_in_a_stream_is_passed_over(actor, record, store, channel, caplog, fields):
    channel.call("XADD", store.stream("robot"), "7-1", *fields)
    recorder, robot = record(), actor()
    robot.send(0, 10)
    assert recorder.has(10)
    assert recorder.consumer.rejected == 1
    assert "rejected 1 transitions of actor 'robot', of chunk 7-1" in caplog.text


def test_a_store_that_refuses(actor, record, caplog):
    recorder, robot = record(), actor()
    recorder.fails = True
    robot.send(100, 110)
    wait_until(lambda: recorder.consumer.rejected == 10)
    assert "no disk" in caplog.text
    recorder.fails = False
    robot.send(0, 10)
    assert recorder.has(10)


def test_a_large_batch_is_split(actor, record):
    recorder, robot = record(), actor()
    robot.producer.take(rows(0, 40, size=MIB // 4), {})  # 40 MiB
    assert len(robot.producer.pending) > 4
    limit = cutting.CHUNK_MAX_BYTES
    assert all(chunk.frame.nbytes <= limit for chunk in robot.producer.pending)
    robot.producer.flush(LONG_S)
    assert recorder.has(40)


def test_a_row_larger_than_a_chunk_goes_alone(actor, record):
    recorder, robot = record(), actor()
    robot.producer.take(rows(0, 2, size=3 * MIB), {})
    assert [chunk.last for chunk in robot.producer.pending] == [1, 2]
    robot.producer.flush(LONG_S)
    assert recorder.has(2)


def test_many_small_rows_are_split(actor, record, monkeypatch):
    monkeypatch.setattr(cutting, "CHUNK_MAX_ROWS", 7)
    recorder, robot = record(), actor()
    robot.producer.take(rows(0, 100), {})
    assert len(robot.producer.pending) == 15
    robot.producer.flush(LONG_S)
    assert recorder.has(100)


def test_rows_that_may_not_travel_are_left_out(actor, record, caplog):
    recorder, robot = record(), actor()
    batch = rows(0, 50)
    for place in (0, 17, 18, 51):
        batch.insert(place, {"n": object(), "observations": np.zeros(3)})
    with pytest.raises(EncodeError) as caught:
        robot.producer.take(batch, {})
    assert caught.value.path == "n"
    assert "4 transitions of store 'env' may not travel" in caplog.text
    robot.producer.flush(LONG_S)
    assert recorder.has(50)
    assert recorder.consumer.gaps == 0


def test_nothing_to_send(actor, store, channel):
    robot = actor()
    robot.producer.take([], {})
    robot.producer.flush(0.0)
    assert channel.call("EXISTS", store.stream("robot")) == 0


def test_meta_travels(actor, broker, keys):
    found = []
    consumer = Consumer(broker, keys, STORE, lambda a, c, last: found.append(c.meta), "t", {})
    consumer.start()
    robot = actor()
    robot.producer.take(rows(0, 1), {"policy": [1, 2]})
    robot.producer.flush(LONG_S)
    wait_until(lambda: found)
    assert found == [{"policy": [1, 2], "actor": "robot"}]
    consumer.stop()


def test_block_waits_for_the_slow_consumer(actor, record, store, channel):
    slow, quick = record("slow", start=False), record("quick")
    slow.consumer.register()
    robot = actor(retention=Retention(max_bytes=100_000))
    sent = 0
    with pytest.raises(StoreFull, match="consumer 'slow'"):
        while sent < 1000:
            robot.send(sent, sent + 1, timeout_s=0.05, size=2500)
            sent += 1
    assert 5 < sent < 12
    assert channel.call("XLEN", store.stream("robot")) == sent
    assert robot.producer.dropped == 0
    assert quick.has(sent)
    slow.consumer.start()
    robot.flush_at_last()
    robot.send(sent + 1, sent + 50, size=2500)
    assert slow.has(sent + 50)
    assert slow.consumer.gaps == quick.consumer.gaps == 0


def test_only_what_every_consumer_has_passed_is_trimmed(actor, record, store, channel):
    consumers = [record("a"), record("b")]
    robot = actor(retention=Retention(max_bytes=50_000))
    for n in range(100):
        robot.send(n, n + 1, size=2500)
    assert all(consumer.has(100) for consumer in consumers)
    assert all(consumer.consumer.gaps == 0 for consumer in consumers)
    assert channel.call("XLEN", store.stream("robot")) <= 5
    assert robot.producer.dropped == 0


def test_a_full_stream_is_not_trimmed_with_every_chunk(actor, record, monkeypatch):
    """Each time takes two round trips more."""
    recorder, robot = record(), actor(retention=Retention(max_bytes=1_000_000))
    room, trims = robot.producer._room, []
    trim = room._trim

    def counted(*args):
        trims.append(len(room._kept))
        return trim(*args)

    monkeypatch.setattr(room, "_trim", counted)
    for n in range(1000):
        robot.send(n, n + 1, size=250)
        assert recorder.has(n + 1)
    # 1,200 bytes each with what is around them: some 800 fit, of which 13 go at a time.
    assert 5 < len(trims) < 50
    assert min(trims) > 700
    assert robot.producer.dropped == 0


def test_without_pressure_nothing_is_trimmed(actor, record, store, channel):
    recorder, robot = record(), actor()
    for n in range(50):
        robot.send(n, n + 1)
    assert recorder.has(50)
    assert channel.call("XLEN", store.stream("robot")) == 50


def test_a_chunk_larger_than_the_budget(actor, record):
    recorder, robot = record(), actor(retention=Retention(max_bytes=1000))
    robot.send(0, 5, size=10_000)
    robot.send(5, 10, size=10_000)
    assert recorder.has(10)


def test_drop_oldest_is_counted_on_both_sides(actor, record, caplog):
    recorder = record()
    robot = actor(retention=Retention(max_bytes=100_000, when_full="drop_oldest"))
    robot.send(0, 1, size=2500)
    assert recorder.has(1)
    recorder.consumer.stop()
    for n in range(1, 101):
        robot.send(n, n + 1, timeout_s=0.1, size=2500)
    assert 85 < robot.producer.dropped < 95
    assert caplog.text.count("dropped the oldest transitions of actor 'robot'") == 1
    late = record(positions=recorder.positions)
    wait_until(lambda: late.consumer.applied + robot.producer.dropped == 100)
    assert late.rows["robot"][-1] == 100
    assert late.consumer.gaps == robot.producer.dropped


def test_the_share_of_an_actor(actor, record):
    record()
    for n in range(4):
        robot = actor(f"robot{n}", retention=Retention(max_bytes=1000))
        robot.send(0, 1)
    assert robot.producer._room.share_bytes == 250


def test_a_retention_is_checked():
    with pytest.raises(ValueError, match="'block' or 'drop_oldest'"):
        Retention(when_full="forget")
    with pytest.raises(ValueError, match="must be positive"):
        Retention(max_bytes=0)
    assert Retention(**Retention(5, "drop_oldest").to_info()) == Retention(5, "drop_oldest")


def test_a_restarted_actors_old_entries_count(actor, record, store, channel, any_broker_url):
    """What its predecessor left unread in the stream is a part of the budget."""
    if any_broker_url.startswith("memory"):
        pytest.skip("fakeredis does not say what a stream weighs")
    slow = record("slow", start=False)
    slow.consumer.register()
    actor(retention=Retention(max_bytes=100_000)).send(0, 8, size=2500)
    again = actor(retention=Retention(max_bytes=100_000))
    with pytest.raises(StoreFull):
        for n in range(8, 20):
            again.send(n, n + 1, timeout_s=0.1, size=2500)
    assert channel.call("XLEN", store.stream("robot")) < 6


def everything(channel, store):
    return {
        bytes(key)
        for key in channel.at(store.prefix).call("KEYS", store.prefix.replace("{", "[{]") + "*")
    }


def is_forgotten(channel, store, actor="robot"):
    """Whether a stream was emptied; it stays a while, to keep a zombie of its actor out."""
    stream = store.stream(actor)
    return channel.call("XLEN", stream) == 0 and channel.call("PTTL", stream) > 0


def test_a_goodbye_empties_a_stream_that_was_read(actor, record, store, channel):
    recorder, robot = record(), actor()
    robot.send(0, 10)
    assert recorder.has(10)
    robot.producer.close(channel, 1.0)
    wait_until(lambda: is_forgotten(channel, store))
    assert channel.call("EXISTS", store.actors, store.closed) == 0
    assert channel.call("EXISTS", store.cursor("trainer")) == 0
    left = [store.joined, store.consumers, store.consumer("trainer"), store.stream("robot")]
    left = {key.encode() for key in (*left, store.identity)}
    assert everything(channel, store) == left


def test_a_zombie_is_kept_out_also_after_its_successors_goodbye(actor, record, store, channel):
    recorder, zombie = record(), actor()
    zombie.send(0, 5)
    assert recorder.has(5)
    successor = actor()
    successor.send(5, 10)
    assert recorder.has(10)
    successor.producer.close(channel, 1.0)
    wait_until(lambda: is_forgotten(channel, store))
    with pytest.raises(ActorReplaced):
        zombie.send(100, 105)
    assert recorder.has(10)


def test_a_goodbye_leaves_a_stream_that_was_not_read(actor, record, store, channel):
    record("late", start=False).consumer.register()
    robot = actor()
    robot.send(0, 10)
    robot.producer.close(channel, 1.0)
    robot.vanish()
    assert channel.call("XLEN", store.stream("robot")) == 1
    assert record("late").has(10)
    wait_until(lambda: is_forgotten(channel, store))


def test_an_actor_may_come_back_after_its_goodbye(actor, record, store, channel):
    recorder, robot = record(), actor()
    for start in (0, 10, 20):
        robot.send(start, start + 10)
        assert recorder.has(start + 10)
        robot.producer.close(channel, 1.0)
    robot.send(30, 40)
    assert recorder.has(40)
    assert channel.call("SISMEMBER", store.closed, "robot") == 0


def test_a_replaced_actor_does_not_say_goodbye_for_the_new_one(actor, store, channel):
    old = actor()
    old.send(0, 10)
    actor().send(10, 20)
    old.producer.close(channel, 1.0)
    assert channel.call("SISMEMBER", store.closed, "robot") == 0
    assert channel.call("XLEN", store.stream("robot")) == 2


def test_a_goodbye_sends_what_is_left(actor, record, store, channel):
    recorder, robot = record(), actor()
    robot.send(0, 10)
    robot.producer.take(rows(10, 20), {})
    robot.producer.close(channel, LONG_S)
    assert recorder.has(20)


def test_a_goodbye_without_a_word_said(actor, store, channel):
    actor().producer.close(channel, 1.0)
    assert everything(channel, store) == set()


def test_the_stream_of_a_vanished_actor_expires(actor, record, store, channel):
    recorder, robot = record(), actor()
    robot.send(0, 10)
    assert recorder.has(10)
    robot.vanish()
    stream = store.stream("robot")
    wait_until(lambda: channel.call("PTTL", stream) > 0)
    assert channel.call("PTTL", stream) <= ORPHAN_MS
    channel.call("PEXPIRE", stream, 1)
    wait_until(lambda: not channel.call("EXISTS", store.actors, store.closed))
    assert channel.call("EXISTS", store.cursor("trainer")) == 0


def test_the_stream_of_an_actor_that_comes_back_does_not_expire(actor, record, store, channel):
    recorder, robot = record(), actor()
    robot.send(0, 10)
    assert recorder.has(10)
    channel.call("DEL", robot._presence)
    stream = store.stream("robot")
    for comes_back in (robot.producer.beat, lambda _: robot.send(10, 20)):
        wait_until(lambda: channel.call("PTTL", stream) > 0)
        comes_back(channel)
        assert channel.call("PTTL", stream) == -1 or channel.call("PTTL", stream) > ORPHAN_MS / 2
    robot.announce()
    robot.producer.beat(channel)
    assert channel.call("PTTL", stream) == -1


def test_a_stream_that_was_not_read_does_not_expire(actor, record, store, channel):
    record("slow", start=False).consumer.register()
    recorder, robot = record(), actor()
    robot.send(0, 10)
    robot.vanish()
    assert recorder.has(10)
    polls = recorder.consumer._channel
    asked = polls._asked
    wait_until(lambda: polls._asked > asked)
    assert channel.call("PTTL", store.stream("robot")) == -1


def test_where_no_consumer_is_known_nothing_counts_as_read(actor, store, channel):
    """A broker that came back empty knows the actor before the trainer."""
    robot = actor(retention=Retention(max_bytes=50_000))
    robot.send(0, 1, size=2500)  # connecting takes a time of its own
    sent = 1
    with pytest.raises(StoreFull):
        while sent < 100:
            robot.send(sent, sent + 1, timeout_s=0.05, size=2500)
            sent += 1
    assert channel.call("XLEN", store.stream("robot")) == sent > 2
    assert robot.producer.dropped == 0
