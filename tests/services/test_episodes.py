"""Episodes that an actor marks: exactly behind what was inserted, held back, or discarded."""

import contextlib

import numpy as np
import pytest

from agentlace import (
    AgentlaceError,
    Closed,
    EncodeError,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    UnknownRequest,
)
from agentlace.codec.mark import ABORTED, BEGIN, DISCARD, TERMINATED, TRUNCATED
from agentlace.config import BrokerURL
from agentlace.data import DataStoreBase, QueuedDataStore, ReplayBuffer
from agentlace.trainer import TrainerSMInterface
from agentlace.transport.connection import Broker
from agentlace.transport.consumer import Consumer
from agentlace.transport.keys import ServiceKeys

from .support import wait_until

CONFIG = TrainerConfig(5588, 5589)


class Stream:
    """What a recorder would find in one store's streams: numbers of rows, and marks."""

    def __init__(self, url, store):
        self.found, self.marks = [], []
        url = BrokerURL.parse(url)
        keys = ServiceKeys(url.namespace, "trainer", CONFIG.port_number)
        args = (Broker(url), keys, store, self._apply, "recorder:x", {})
        self.consumer = Consumer(*args, on_mark=self._mark)

    def _apply(self, actor, chunk, last):
        self.found += [int(row["n"]) for row in chunk.rows()]

    def _mark(self, actor, mark, entry):
        self.marks.append(mark)
        self.found.append(mark.what if mark.how is None else mark.how)

    def has(self, *expected):
        wait_until(lambda: len(self.found) >= len(expected), what=f"{expected}, not {self.found}")
        assert self.found == list(expected)
        return True


@pytest.fixture
def trainer(running, broker_url):
    server = running(TrainerServer(CONFIG, broker=broker_url))
    for name in ("env", "demos"):
        server.register_data_store(name, ReplayBuffer(1000))
    server.start(threaded=True)
    return server


@pytest.fixture
def stream(running, trainer, broker_url):
    def stream(store="env"):
        stream = Stream(broker_url, store)
        running(contextlib.closing(_Stopping(stream.consumer)))
        stream.consumer.start()
        return stream

    return stream


class _Stopping:
    def __init__(self, consumer):
        self.close = consumer.stop


@pytest.fixture
def robot(running, trainer, broker_url):
    def robot(stores=None, **kwargs):
        stores = {"env": QueuedDataStore(1000)} if stores is None else stores
        kwargs = {"timeout_ms": 20_000, "broker": broker_url} | kwargs
        return running(TrainerClient("robot", "localhost", CONFIG, data_stores=stores, **kwargs))

    return robot


def insert(client, start, stop, store="env"):
    for n in range(start, stop):
        client._outboxes[store].store.insert({"n": n, "observations": np.full(3, n, np.float32)})


def test_marks_come_exactly_behind_what_was_inserted(robot, stream, trainer):
    client, stream = robot(), stream()
    insert(client, 0, 2)
    client.begin_episode({"task": "stack"})
    insert(client, 2, 4)
    client.end_episode(TERMINATED, {"success": True})
    insert(client, 4, 5)
    assert not stream.found
    assert client.update()
    assert stream.has(0, 1, BEGIN, 2, 3, TERMINATED, 4)
    begin, end = stream.marks
    assert begin.metadata == {"task": "stack"} and end.metadata == {"success": True}
    assert begin.episode == end.episode == 1 and begin.at_s <= end.at_s
    wait_until(lambda: len(trainer.data_store("env")) == 5)
    assert trainer.counters()["env"] == {"applied": 5, "rejected": 0, "missing": 0}


def test_marks_alone_are_sent_too(robot, stream):
    client, stream = robot(), stream()
    client.begin_episode()
    assert client.update()
    client.end_episode(ABORTED)
    assert client.update()
    assert stream.has(BEGIN, ABORTED)


def test_marks_are_sent_at_the_end(robot, stream):
    client, stream = robot(), stream()
    insert(client, 0, 2)
    client.end_episode(TRUNCATED)
    client.stop()
    assert stream.has(0, 1, TRUNCATED)


def test_updates_and_marks_are_counted_apart(robot, stream):
    client = robot()
    client.begin_episode()
    insert(client, 0, 3)
    assert client.update_datastore("env", -1, confirm_update=True)
    assert client.get_server_last_update_id("env") == 2
    client.end_episode(TERMINATED)
    insert(client, 3, 4)
    assert client.update_datastore("env", -1, confirm_update=True)
    assert client.get_server_last_update_id("env") == 3


def test_all_stores_of_a_client_or_one(robot, stream):
    client = robot({"env": QueuedDataStore(9), "demos": QueuedDataStore(9)})
    env, demos = stream("env"), stream("demos")
    client.begin_episode()
    insert(client, 0, 1, "env")
    insert(client, 7, 8, "demos")
    client.end_episode(ABORTED, store="demos")
    client.end_episode(TERMINATED, store="env")
    assert client.update()
    assert env.has(BEGIN, 0, TERMINATED) and demos.has(BEGIN, 7, ABORTED)
    with pytest.raises(UnknownRequest, match="'other'"):
        client.begin_episode(store="other")


def test_episodes_are_numbered(robot, stream):
    client, stream = robot(), stream()
    client.end_episode(TERMINATED)  # began with the first transition
    client.begin_episode()
    client.begin_episode()
    client.end_episode(TERMINATED)
    client.update()
    wait_until(lambda: len(stream.marks) == 4)
    assert [mark.episode for mark in stream.marks] == [1, 2, 3, 3]


def test_what_makes_no_mark(robot):
    client = robot()
    with pytest.raises(ValueError, match="terminated, truncated, aborted"):
        client.end_episode("well")
    with pytest.raises(EncodeError, match="thing"):
        client.begin_episode({"thing": object()})
    with pytest.raises(AgentlaceError, match="no episode to discard"):
        client.discard_episode()
    assert not client._outboxes["env"].producer.pending
    client.stop()
    with pytest.raises(Closed):
        client.begin_episode()


def test_a_transition_that_may_not_travel_does_not_take_the_mark_along(robot, stream):
    client, stream = robot(), stream()
    insert(client, 0, 1)
    client._outboxes["env"].store.insert({"n": object()})
    with pytest.raises(EncodeError):
        client.end_episode(TERMINATED)
    assert client.update()
    assert stream.has(0, TERMINATED)


def test_two_ctrl_cs_do_not_part_rows_and_marks(robot, stream, monkeypatch):
    client, stream = robot(), stream()
    insert(client, 0, 2)
    outbox = client._outboxes["env"]
    take = outbox.producer.take

    def interrupted(rows, meta):
        take(rows, meta)
        raise KeyboardInterrupt

    monkeypatch.setattr(outbox.producer, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.end_episode(TERMINATED)
    monkeypatch.undo()
    client.end_episode(TERMINATED)
    client.update()
    assert stream.has(0, 1, TERMINATED)


class TestDiscarding:
    def test_what_was_not_sent_never_is(self, robot, stream, trainer):
        client, stream = robot(), stream()
        insert(client, 0, 2)
        client.begin_episode()
        insert(client, 2, 5)
        client.discard_episode()
        client.begin_episode()
        insert(client, 5, 6)
        client.end_episode(TERMINATED)
        assert client.update_datastore("env", -1, confirm_update=True)
        assert stream.has(0, 1, BEGIN, 5, TERMINATED)
        assert [mark.episode for mark in stream.marks] == [1, 1]
        assert stream.consumer.gaps == 0
        assert len(trainer.data_store("env")) == 3
        assert client.get_server_last_update_id("env") == 5

    def test_what_was_sent_is_marked(self, robot, stream, trainer):
        client, stream = robot(), stream()
        client.begin_episode()
        insert(client, 0, 2)
        assert client.update()
        insert(client, 2, 4)
        client.discard_episode()
        client.begin_episode()
        insert(client, 4, 5)
        assert client.update_datastore("env", -1, confirm_update=True)
        assert stream.has(BEGIN, 0, 1, DISCARD, BEGIN, 4)
        assert [mark.episode for mark in stream.marks] == [1, 1, 2]
        assert stream.consumer.gaps == 0
        assert len(trainer.data_store("env")) == 3
        assert client.get_server_last_update_id("env") == 4

    def test_only_once(self, robot):
        client = robot()
        client.begin_episode()
        client.discard_episode()
        with pytest.raises(AgentlaceError, match="begin one first"):
            client.discard_episode()


class TestHolding:
    def test_an_episode_is_sent_when_it_has_ended(self, robot, stream, trainer):
        client, stream = robot(hold_episodes=True), stream()
        insert(client, 0, 1)
        client.begin_episode()
        insert(client, 1, 3)
        assert client.update_datastore("env", -1, confirm_update=True)
        assert stream.has(0)
        insert(client, 3, 4)
        assert client.update()
        client.end_episode(TERMINATED)
        insert(client, 4, 5)
        assert client.update_datastore("env", -1, confirm_update=True)
        assert stream.has(0, BEGIN, 1, 2, 3, TERMINATED, 4)

    def test_a_discarded_one_reaches_nobody(self, robot, stream, trainer):
        client, stream = robot(hold_episodes=True), stream()
        client.begin_episode()
        insert(client, 0, 2)
        assert client.update()
        client.discard_episode()
        client.begin_episode()
        insert(client, 2, 3)
        assert client.update()
        client.end_episode(TRUNCATED)
        assert client.update_datastore("env", -1, confirm_update=True)
        assert stream.has(BEGIN, 2, TRUNCATED)
        assert len(trainer.data_store("env")) == 1

    def test_one_that_is_followed_by_another_has_ended(self, robot, stream):
        client, stream = robot(hold_episodes=True), stream()
        client.begin_episode()
        insert(client, 0, 1)
        client.begin_episode()
        insert(client, 1, 2)
        assert client.update()
        assert stream.has(BEGIN, 0)

    def test_arrays_may_change_once_update_has_returned(self, robot, stream, trainer):
        client = robot(hold_episodes=True)
        image = np.full((64, 64), 7, np.uint8)
        client.begin_episode()
        client._outboxes["env"].store.insert({"observations": image})
        assert client.update()
        image[:] = 0
        client.end_episode(TERMINATED)
        assert client.update_datastore("env", -1, confirm_update=True)
        assert (trainer.data_store("env").sample(1)["observations"] == 7).all()

    def test_a_program_that_ends_sends_what_it_holds(self, robot, stream):
        client, stream = robot(hold_episodes=True), stream()
        client.begin_episode()
        insert(client, 0, 2)
        client.update()
        client.stop()
        assert stream.has(BEGIN, 0, 1, ABORTED)

    def test_what_is_held_is_bounded(self, robot, stream):
        client, stream = robot({"env": QueuedDataStore(10)}, hold_episodes=True), stream()
        client.begin_episode()
        for n in range(50):
            insert(client, n, n + 1)
            assert client.update()
        pending = client._outboxes["env"].producer.pending
        assert sum(sent.last - sent.first + 1 for sent in pending) <= 10
        client.end_episode(TERMINATED)
        assert client.update()
        wait_until(lambda: TERMINATED in stream.found)
        rows = [found for found in stream.found if isinstance(found, int)]
        assert rows == list(range(50 - len(rows), 50))
        assert client.lost == 50 - len(rows) > 0


class Endless(DataStoreBase):
    """A store of a user's own, that tells no capacity."""

    def __init__(self):
        self.rows = []

    def insert(self, data):
        self.rows.append(data)

    def latest_data_id(self):
        return len(self.rows) - 1

    def get_latest_data(self, from_id):
        return self.rows[from_id + 1 :]


def test_a_store_that_tells_no_capacity_loses_nothing(robot, stream):
    client, stream = robot({"env": Endless()}, hold_episodes=True), stream()
    client.begin_episode()
    insert(client, 0, 100)
    client.end_episode(TERMINATED)
    assert client.update()
    assert stream.has(BEGIN, *range(100), TERMINATED)
    assert client.lost == 0


def test_marks_while_the_broker_is_away(robot, stream, running, broker_url):
    """They need no network, and what waits is bounded."""
    client = robot({"env": QueuedDataStore(10)})
    client._stream_channel.close()  # as good as a broker that is gone
    for n in range(40):
        client.begin_episode()
        insert(client, n, n + 1)
        client.end_episode(TERMINATED)
    pending = client._outboxes["env"].producer.pending
    assert sum(sent.last - sent.first + 1 for sent in pending) <= 10
    assert client.lost > 0


def test_one_process_has_the_same_calls():
    both = TrainerSMInterface()
    both.register_data_store("env", QueuedDataStore(10))
    both.begin_episode({"task": "x"})
    both.end_episode(TERMINATED, store="env")
    both.discard_episode()
