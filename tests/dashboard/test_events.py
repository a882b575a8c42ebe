"""What counts as an event between two snapshots."""

import dataclasses

import pytest

from agentlace.dashboard.events import HEARD_MAX, NETWORKS_QUIET_S, QUIET_S, Differ, EventLog
from agentlace.operating import BrokerState, Peer, Snapshot
from agentlace.operating.peers import Event
from agentlace.telemetry import Sample

BROKER = BrokerState("redis://x", "valkey 9", 100.0, 1, 2, "noeviction", 3, 0.001, 0.1)
ACTOR = Peer("trainer:5555", False, "actor", "robot", "host", 7, "1", "t1", True, 0.5, 0.1)
TRAINER = Peer("trainer:5555", True, "trainer", "trainer:5555", "gpu", 9, "1", "t2", True, 0.5, 0.1)


def with_(peer, **changes):
    return dataclasses.replace(peer, **changes)


class Story:
    """Snapshots one after the other, a second apart."""

    def __init__(self, *peers):
        self.log = EventLog()
        self.differ = Differ(self.log)
        self.at_s = 1000.0
        self.seen = 0
        assert self.then(*peers) == []

    def then(self, *peers, broker=BROKER, after_s=1.0):
        """Return kind, node and text of the new events."""
        self.at_s += after_s
        self.differ.look(Snapshot(1000 * self.at_s, "default", broker, peers, ()))
        new = self.log.after(self.seen)
        self.seen = max([self.seen, *(event["id"] for event in new)])
        return [(event["kind"], event["who"], event["text"]) for event in new]


def test_who_comes_and_goes():
    story = Story(TRAINER)
    assert story.then(TRAINER, ACTOR) == [("join", "robot", "actor at host, pid 7")]
    assert story.then(TRAINER, ACTOR) == []
    assert story.then(TRAINER) == [("leave", "robot", "actor at host, pid 7")]


def test_who_goes_without_a_goodbye_is_lost():
    story = Story(TRAINER, ACTOR)
    late = with_(ACTOR, beat_s=4.0)
    assert story.then(TRAINER, late) == [("late", "robot", "no heartbeat for 4 s")]
    ((kind, who, text),) = story.then(TRAINER)
    assert (kind, who) == ("loss", "robot") and "lost without a goodbye" in text


def test_who_was_late_and_is_back():
    story = Story(with_(ACTOR, beat_s=4.0))
    assert story.then(ACTOR) == [("back", "robot", "its heart beats again")]


def test_a_server_that_left_is_remembered_and_comes_back():
    story = Story(TRAINER)
    gone = with_(TRAINER, is_there=False)
    assert [kind for kind, *_ in story.then(gone)] == ["leave"]
    assert story.then(gone) == []
    assert story.then(with_(TRAINER, token="t3", pid=10))[0][0] == "join"


def test_a_restart_between_two_looks():
    story = Story(ACTOR)
    found = story.then(with_(ACTOR, token="new", pid=8))
    assert found == [("restart", "robot", "actor at host, pid 8; before: host, pid 7")]


def test_many_at_once_are_one_event():
    story = Story(TRAINER)
    many = [with_(ACTOR, name=f"robot-{n}", token=str(n)) for n in range(64)]
    ((kind, who, text),) = story.then(TRAINER, *many)
    assert (kind, who) == ("join", "64 of actor") and text.startswith("robot-0, robot-1, ")


def test_drops_are_counted_and_told_now_and_then():
    def actor(lost):
        return with_(ACTOR, samples=(Sample("transitions_lost_total", lost, {"store": "arm"}),))

    story = Story(actor(5.0))
    what = "transitions overwritten before they were sent"
    assert story.then(actor(8.0)) == [("drop", "robot", f"{what}: 3")]
    assert story.then(actor(9.0)) == []
    assert story.then(actor(11.0)) == []
    assert story.then(actor(12.0), after_s=QUIET_S) == [("drop", "robot", f"{what}: 4")]
    assert story.then(actor(12.0), after_s=QUIET_S) == []
    # Another process counts from the start.
    assert story.then(with_(actor(1.0), token="new"))[0][0] == "restart"


def test_networks_are_told_now_and_then():
    def trainer(version):
        return with_(TRAINER, samples=(Sample("network_version", version),))

    story = Story(trainer(3.0))
    assert story.then(trainer(4.0)) == [("policy", "trainer:5555", "network 4")]
    for version in range(5, 14):
        assert story.then(trainer(version)) == []
    found = story.then(trainer(14.0), after_s=NETWORKS_QUIET_S)
    assert found == [("policy", "trainer:5555", "network 14, the last of 10")]


def test_pauses():
    story = Story(TRAINER)
    paused = with_(TRAINER, is_paused=True)
    assert story.then(paused) == [("pause", "trainer:5555", "pauses its actors")]
    assert story.then(TRAINER) == [("resume", "trainer:5555", "goes on")]


def test_what_a_node_tells_itself_comes_once():
    old, new = Event(5.0, "reconnect", "before"), Event(2e6, "reconnect", "connected again")
    story = Story(with_(ACTOR, events=(old,)))
    both = with_(ACTOR, events=(old, new))
    assert story.then(both) == [("reconnect", "robot", "connected again")]
    assert story.then(both) == []
    story.then()
    assert [kind for kind, *_ in story.then(both)] == ["join"]


def test_a_broker_that_was_started_anew():
    story = Story()
    broker = dataclasses.replace(BROKER, uptime_s=1.0)
    assert story.then(broker=broker) == [("broker", "broker", "it was started anew")]


def test_the_log_is_bounded():
    log = EventLog(kept=10)
    for number in range(25):
        log.add(number, "join", "x", "y" * 10_000)
    told = log.after(0)
    assert [event["id"] for event in told] == list(range(16, 26))
    assert len(told[0]["text"]) < 1000
    assert log.after(24) == told[-1:]


def test_what_is_known_of_nodes_is_bounded():
    differ = Differ(EventLog())
    for number in range(HEARD_MAX + 10):
        peer = with_(ACTOR, token=str(number))
        differ.look(Snapshot(number * 1000.0, "default", BROKER, (peer,), ()))
    assert len(differ._heard) == HEARD_MAX


@pytest.mark.parametrize("later", [0.0, 3600.0])
def test_the_clock_of_a_node_does_not_matter(later):
    """A node whose clock is wrong tells its events all the same."""
    story = Story(with_(ACTOR, events=(Event(later, "reconnect", "a"),)))
    found = story.then(with_(ACTOR, events=(Event(later + 1, "reconnect", "b"),)))
    assert found == [("reconnect", "robot", "b")]
